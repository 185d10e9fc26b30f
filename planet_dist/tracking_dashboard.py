"""The team's W&B workspace and report as code: what each panel shows, built with wandb-workspaces (an extra).

Every key comes from tracking_names, so that no panel stays empty.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from planet_dist.tracking_names import AXIS, METRICS, definitions, key_parts
from shards.errors import ConfigError, RunError
from shards.labels import Vocabulary
from shards.schema import write_whole

_WORKSPACE, _REPORT = "planet-dist", "planet-dist: how the runs stand"
_RULES = [metric.key for metric in METRICS if metric.key.startswith("val/f2")]
_SHARES = [metric.key for metric in METRICS if metric.key.startswith("time/") and metric.key.endswith("_share")]
# What a sweep is likely to vary, as the configuration at W&B names it; launch/sweep.yaml is one.
_VARIED = ("phases.0.learning_rate", "phases.0.weight_decay", "model.dropout", "phases.0.batch_size")


def summary_key(key: str) -> str:
    """Where W&B's summary has the value that stands for a run: a best-of is nested under its name."""
    summary = next(metric.summary for metric in METRICS if metric.key == key)
    return key if summary == "last" else f"{key}.{summary}"


class Dashboard:
    """A workspace and a report for a project.

    Args:
        entity: a team or a user at W&B.
        project: its project.
        vocabulary: of the datasets that its runs train on.

    Raises:
        ConfigError: wandb-workspaces is not installed.
    """

    def __init__(self, entity: str, project: str, vocabulary: Vocabulary) -> None:
        try:
            with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of its own use of pydantic
                import wandb_workspaces.reports.v2 as wr
                import wandb_workspaces.workspaces as ws
        except ImportError as error:
            raise ConfigError("the dashboard needs wandb-workspaces: pip install 'planet-dist[dashboard]'") from error
        self._wr, self._ws = wr, ws
        self._entity, self._project = entity, project
        self._labels = key_parts(vocabulary.labels)
        self._groups = key_parts([group.name for group in vocabulary.exclusive])
        self._known = {metric.key for metric in definitions(list(self._labels), list(self._groups))}

    def _line(self, title: str, *keys: str, **settings: Any) -> Any:
        assert set(keys) <= self._known, keys
        return self._wr.LinePlot(title=title, x=AXIS, y=list(keys), title_x="optimizer steps", **settings)

    def _bar(self, title: str, *keys: str, **settings: Any) -> Any:
        return self._wr.BarPlot(title=title, metrics=[summary_key(key) for key in keys], **settings)

    def _table(self, key: str) -> Any:
        assert key in self._known, key
        return self._wr.WeavePanelSummaryTable(table_name=key)

    def overview(self) -> list[Any]:
        """Loss, the rate and F2."""
        scalar = self._wr.ScalarChart
        return [
            scalar(title="best F2", metric=summary_key("val/f2"), groupby_aggfunc="max"),
            scalar(title="F2 of the deployed rule, cross-fitted", metric="val/cross_fitted_f2", groupby_aggfunc="max"),
            self._line("validation F2 by decision rule", *_RULES),
            self._line("validation F2, best single threshold", "val/f2"),
            self._line("loss in training", "train/loss", smoothing_type="exponential", smoothing_factor=0.6),
            self._line("loss in validation", "val/loss"),
            self._line("accuracy at 0.5", "val/accuracy"),
            self._line("learning rate", "train/learning_rate"),
            self._line("gradient norm", "train/grad_norm", log_y=True),
            self._line("calibration error", "val/calibration_error"),
            self._table("mistakes/worst"),
        ]

    def labels(self) -> list[Any]:
        """All labels side by side, then each label's own panel, and where labels are mistaken for each other."""
        whole = [
            self._line(f"{what} of every label", *(f"label/{part}/{what}" for part in self._labels.values()))
            for what in ("f2", "threshold")
        ]
        each = [
            self._line(label, *(f"label/{part}/{what}" for what in ("f2", "precision", "recall")), range_y=(0, 1))
            for label, part in self._labels.items()
        ]
        tables = [self._table(f"confusion/{part}") for part in self._groups.values()]
        return [*whole, *each, *tables, self._table("cooccurrence/labels"), self._table("calibration/reliability")]

    def speed(self) -> list[Any]:
        """Where the time goes."""
        rate, seconds = "time/images_per_second", "time/seconds"
        return [
            self._line("training chips a second", rate),
            self._line("share of the step's time", *_SHARES, range_y=(0, 1)),
            self._line("seconds between lines", seconds),
            self._line("GiB of GPU memory", "time/gpu_memory_gib"),
            self._bar("training chips a second, mean", rate),
        ]

    def ensembles(self) -> list[Any]:
        """Members and folds, by the group that they stand in."""
        grouped: dict[str, Any] = {"groupby": "Group", "groupby_aggfunc": "mean"}
        return [
            self._line("validation F2, mean of each group", "val/f2", groupby_rangefunc="minmax", **grouped),
            self._line("validation loss, mean of each group", "val/loss", groupby_rangefunc="minmax", **grouped),
            self._bar("cross-fitted F2 of each group", "val/cross_fitted_f2", groupby_rangefunc="minmax", **grouped),
            self._bar("cross-fitted F2 of each run", "val/cross_fitted_f2"),
        ]

    def sweeps(self) -> list[Any]:
        """What varied, and what came of it."""
        wr = self._wr
        target = "val/cross_fitted_f2"
        columns = [wr.ParallelCoordinatesPlotColumn(metric=wr.Config(name)) for name in _VARIED]
        columns.append(wr.ParallelCoordinatesPlotColumn(metric=wr.SummaryMetric(target)))
        return [
            wr.ParallelCoordinatesPlot(title="what varied, and the F2 that came of it", columns=columns),
            wr.ParameterImportancePlot(with_respect_to=target),
            wr.RunComparer(diff_only="split"),
        ]

    def _sections(self) -> dict[str, list[Any]]:
        return {
            "Overview": self.overview(),
            "Per label": self.labels(),
            "Speed": self.speed(),
            "Ensembles": self.ensembles(),
            "Sweeps": self.sweeps(),
        }

    def workspace(self) -> Any:
        """A wandb_workspaces Workspace."""
        ws = self._ws
        return ws.Workspace(
            entity=self._entity,
            project=self._project,
            name=_WORKSPACE,
            auto_generate_panels=False,
            sections=[
                ws.Section(name=name, panels=panels, is_open=name == "Overview")
                for name, panels in self._sections().items()
            ],
            settings=ws.WorkspaceSettings(x_axis=AXIS, max_runs=20),
            runset_settings=ws.RunsetSettings(
                pinned_columns=["run:displayName", f"summary:{summary_key('val/f2')}", "summary:val/cross_fitted_f2"]
            ),
        )

    def report(self) -> Any:
        """A wandb_workspaces Report."""
        wr = self._wr
        texts = {
            "Overview": "F2 is the mean over chips; rules are fitted and scored on the same validation chips here.",
            "Per label": "Each label at its own threshold, the best of a grid of 100 for its own F2.",
            "Speed": "Rates over all processes; a share near 1 of waiting means that chips come too slowly.",
            "Ensembles": "Members and folds are grouped; the band reaches from the worst to the best of a group.",
            "Sweeps": "The target is the F2 of the deployed rule on chips that it was not fitted on.",
        }
        blocks: list[Any] = [wr.TableOfContents()]
        for name, panels in self._sections().items():
            # A set of runs that names no project is that of the report, and its definition asks no server for it.
            grid = wr.PanelGrid(runsets=[wr.Runset()], panels=_placed(wr, panels))
            blocks += [wr.H1(name), wr.P(texts[name]), grid]
        return wr.Report(entity=self._entity, project=self._project, title=_REPORT, blocks=blocks, width="fluid")

    def definition(self) -> dict[str, Any]:
        """What W&B would be sent, as plain JSON; the same for the same arguments."""
        models = {"workspace": self.workspace()._to_model(), "report": self.report()._to_model()}
        plain = {
            name: model.model_dump(mode="json", by_alias=True, exclude_none=True) for name, model in models.items()
        }
        named: dict[str, Any] = _renamed(plain, iter(range(10**6)))
        return {"entity": self._entity, "project": self._project, **named}

    def save(self) -> list[str]:
        """Makes both at W&B.

        Returns:
            Their addresses.

        Raises:
            RunError: W&B refuses them.
        """
        from wandb.errors import Error

        try:
            return [str(self.workspace().save().url), str(self.report().save().url)]
        except (Error, ValueError, OSError) as error:
            raise RunError(
                f"W&B refuses the dashboard of {self._entity}/{self._project}: {error}; check both names, and that you "
                "may write there"
            ) from error


def write_definition(path: Path, definition: dict[str, Any]) -> None:
    """Writes a definition whole or not at all.

    Raises:
        RunError: it cannot be written.
    """
    try:
        write_whole(path, (json.dumps(definition, indent=1, ensure_ascii=False) + "\n").encode())
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error}); give another --out") from error


def _placed(wr: Any, panels: Sequence[Any]) -> list[Any]:
    """Panels of a report in rows of three."""
    for place, panel in enumerate(panels):
        panel.layout = wr.Layout(x=8 * (place % 3), y=6 * (place // 3), w=8, h=6)
    return list(panels)


def _renamed(value: Any, numbers: Iterator[int]) -> Any:
    """A definition with counted ids in place of the library's random ones."""
    if isinstance(value, dict):
        return {
            key: f"panel-{next(numbers)}" if key in ("__id__", "id") and inner else _renamed(inner, numbers)
            for key, inner in value.items()
        }
    return [_renamed(inner, numbers) for inner in value] if isinstance(value, list) else value

"""A ready dashboard in Weights & Biases: a workspace and a report, from the documented log keys.

Both are built without an account and without network; their ``save()`` needs both. Runs are overlaid over the step of
the trainer, which tells several validations of one epoch apart. Shown are the keys of monitors with their own group
that measure one dataloader.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from lightning_flatness.tracking import keys
from lightning_flatness.tracking._dashboard_charts import ALARMS, GROUPS, Chart, Group
from lightning_flatness.tracking.wandb_run import STEP_KEY

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2 import LinePlot, Report
    from wandb_workspaces.workspaces import Workspace

NAME = "Flatness and robustness"
HYPERPARAMETERS = ("learning_rate", "weight_decay", "label_smoothing", "epsilon")
"""Names in the runs' configuration, from which the parallel coordinates start."""
OWN_ACCURACY = "val_accuracy"
"""What a module usually calls its clean accuracy."""

_COMPARISON = Group(
    "Comparison",
    "One point or line for each run, with the last value that it logged. Flat is not robust: look.",
    {},
    (),
    is_open=True,
)


def workspace(
    entity: str,
    project: str,
    *,
    name: str = NAME,
    attack: str = keys.WORST_CASE,
    clean_accuracy: str | None = None,
    hyperparameters: Sequence[str] = HYPERPARAMETERS,
    x_axis: str = STEP_KEY,
) -> "Workspace":
    """Build a workspace of all documented keys: alarms, a comparison of the runs, then a section for each monitor.

    Weights & Biases adds the keys of your own, tables and pictures below. Needs the extra ``dashboard``.

    Args:
        entity: user or team.
        project: name of the project.
        name: of the workspace.
        attack: label whose robust accuracy is compared with flatness, as in ``attack/{label}_robust_accuracy``. The
            worst case is logged only where there are several attacks; with one, pass its label, ``linf_8_255`` say.
        clean_accuracy: key of the accuracy without an attack; by default that of ``attack``, and ``val_accuracy`` for
            the worst case, which has none of its own.
        hyperparameters: names in the runs' configuration; a dot leads into a dictionary.
        x_axis: key of the horizontal axis, ``epoch`` for example.

    Returns:
        The workspace, not saved.

    Raises:
        ValueError: if ``attack`` is no label.
        ModuleNotFoundError: if wandb-workspaces is missing.

    Example:
        >>> [section.name for section in workspace("me", "robust").sections][:3]
        ['Alarms', 'Comparison', 'Flatness']
    """
    _check_is_installed()
    import wandb_workspaces.workspaces as ws  # noqa: PLC0415 - an optional dependency

    filled = _filled(_comparison(attack, clean_accuracy, hyperparameters), x_axis)
    pinned = (_last(keys.ALARM), _last(keys.RELATIVE_FLATNESS), _last(_robust_accuracy(attack)))
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[
            ws.Section(
                name=group.name,
                panels=panels,
                is_open=group.is_open,
                pinned=group is ALARMS,
                panel_settings=ws.SectionPanelSettings(x_axis=x_axis),
            )
            for group, panels in filled
        ],
        settings=ws.WorkspaceSettings(x_axis=x_axis),
        runset_settings=ws.RunsetSettings(pinned_columns=[f"summary:{column}" for column in pinned]),
        auto_generate_panels=True,
    )


def report(
    entity: str,
    project: str,
    *,
    name: str = NAME,
    attack: str = keys.WORST_CASE,
    clean_accuracy: str | None = None,
    hyperparameters: Sequence[str] = HYPERPARAMETERS,
    x_axis: str = STEP_KEY,
) -> "Report":
    """Build a report with the panels of the workspace, and what each key means in words.

    It shows the runs of its own project. Needs the extra ``dashboard``.

    Args:
        entity: see :func:`workspace`.
        project: see :func:`workspace`.
        name: title of the report.
        attack: see :func:`workspace`.
        clean_accuracy: see :func:`workspace`.
        hyperparameters: see :func:`workspace`.
        x_axis: see :func:`workspace`.

    Returns:
        The report, not saved.

    Raises:
        ValueError: if ``attack`` is no label.
        ModuleNotFoundError: if wandb-workspaces is missing.

    Example:
        >>> report("me", "robust", name="Do flat minima resist?").title
        'Do flat minima resist?'
    """
    _check_is_installed()
    import wandb_workspaces.reports.v2 as wr  # noqa: PLC0415 - an optional dependency

    blocks: list[Any] = [wr.TableOfContents()]
    for group, panels in _filled(_comparison(attack, clean_accuracy, hyperparameters), x_axis):
        # A set of runs that names no project is that of the report's own, and needs no look-up of it.
        grid = wr.PanelGrid(runsets=[wr.Runset(name="Runs")], panels=panels)
        blocks += [wr.H2(group.name), wr.MarkdownBlock(_explanation(group)), grid]
    return wr.Report(entity=entity, project=project, title=name, blocks=blocks, width="fluid")


def specification(view: "Workspace | Report") -> dict[str, Any]:
    """Return what would be sent to Weights & Biases, in plain types.

    Args:
        view: of :func:`workspace` or :func:`report`.

    Returns:
        The JSON as dictionaries and lists.

    Example:
        >>> specification(workspace("me", "robust"))["displayName"]
        'Flatness and robustness'
    """
    # wandb-workspaces has no public way to its JSON.
    model = view._to_model()  # type: ignore[no-untyped-call, unused-ignore]  # noqa: SLF001
    found: dict[str, Any] = model.model_dump(mode="json", by_alias=True, exclude_none=True)
    return found


def _check_is_installed() -> None:
    if find_spec("wandb_workspaces") is None:
        raise ModuleNotFoundError("The dashboard needs wandb-workspaces: pip install 'wandb-workspaces>=0.3,<1'")


def _filled(comparison: list[Any], x_axis: str) -> list[tuple[Group, list[Any]]]:
    """Groups in order, with their panels."""
    charted = [(group, [_line_plot(chart, x_axis) for chart in group.charts]) for group in (ALARMS, *GROUPS)]
    return [charted[0], (_COMPARISON, comparison), *charted[1:]]


def _line_plot(chart: Chart, x_axis: str) -> "LinePlot":
    from wandb_workspaces.reports.v2 import LinePlot  # noqa: PLC0415 - an optional dependency

    return LinePlot(
        title=chart.title,
        x=x_axis,
        y=list(chart.keys),
        metric_regex=chart.regex,
        log_y=True if chart.scale == "size" else None,
        range_y=(0, 1) if chart.scale == "rate" else (None, None),
    )


def _comparison(attack: str, clean_accuracy: str | None, hyperparameters: Sequence[str]) -> list[Any]:
    import wandb_workspaces.reports.v2 as wr  # noqa: PLC0415 - an optional dependency

    if "/" in attack or not attack:
        raise ValueError(f"`attack` must be a label as in attack/{{label}}_robust_accuracy, got {attack!r}.")
    flatness, robust = _last(keys.RELATIVE_FLATNESS), _last(_robust_accuracy(attack))
    accuracies = {"Flatness and robust accuracy": robust, "Flatness and clean accuracy": _clean(attack, clean_accuracy)}
    outcomes = {"relative flatness": flatness, "robust accuracy": robust, "masking alarm": _last(keys.ALARM)}
    columns = [wr.ParallelCoordinatesPlotColumn(metric=wr.Config(name)) for name in hyperparameters]
    columns += [
        wr.ParallelCoordinatesPlotColumn(metric=wr.SummaryMetric(column), display_name=label)
        for label, column in outcomes.items()
    ]
    scatters = [
        wr.ScatterPlot(title=title, x=wr.SummaryMetric(flatness), y=wr.SummaryMetric(accuracy), log_x=True)
        for title, accuracy in accuracies.items()
    ]
    wide = wr.Layout(w=24, h=10)
    parallel = wr.ParallelCoordinatesPlot(title="From hyper-parameters to outcomes", columns=columns, layout=wide)
    return [*scatters, parallel, wr.RunComparer(diff_only="split", layout=wide)]


def _robust_accuracy(attack: str) -> str:
    return keys.attack_key(attack, keys.ROBUST_ACCURACY)


def _clean(attack: str, key: str | None) -> str:
    """Entry of the summary that holds the clean accuracy: of our keys the last value, of others the plain one."""
    if key is None:
        key = OWN_ACCURACY if attack == keys.WORST_CASE else keys.attack_key(attack, keys.CLEAN_ACCURACY)
    return _last(key) if key.partition("/")[0] in keys.GROUPS else key


def _last(key: str) -> str:
    """Entry of the summary, which holds the smallest, largest and last value of each of our keys."""
    return f"{key}.last"


def _explanation(group: Group) -> str:
    return "\n".join([group.about, "", *(f"- `{key}`: {meaning}" for key, meaning in group.meanings.items())])

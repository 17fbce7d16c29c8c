"""Log keys as loggers see them: of monitors with another group, in ``trainer.test``, with several dataloaders."""

from collections.abc import Iterable


def full_key(
    key: str, *, group: str | None = None, testing: bool = False, dataloader_idx: int = 0, num_dataloaders: int = 1
) -> str:
    """Key as it is logged by a monitor with another group, in ``trainer.test``, and with several dataloaders.

    Args:
        key: plain key, as :mod:`lightning_flatness.tracking.keys` lists it.
        group: of the monitor; None for that of the key.
        testing: whether it is logged in ``trainer.test``.
        dataloader_idx: index of the dataloader.
        num_dataloaders: number of dataloaders; the index is named only if there are several.

    Returns:
        The key as loggers see it.

    Example:
        >>> full_key("flatness/median", testing=True, dataloader_idx=1, num_dataloaders=2)
        'test_flatness/median/dataloader_idx_1'
    """
    own_group, name = key.split("/", maxsplit=1)
    prefix = "test_" if testing else ""
    suffix = f"/dataloader_idx_{dataloader_idx}" if num_dataloaders > 1 else ""
    return f"{prefix}{group or own_group}/{name}{suffix}"


def plain_keys(
    names: Iterable[str],
    *,
    own_group: str,
    group: str,
    testing: bool = False,
    dataloader_idx: int = 0,
    num_dataloaders: int = 1,
) -> dict[str, str]:
    """Plain key of each logged one, where :func:`full_key` made it with these arguments; others are left out.

    Args:
        names: keys as they were logged.
        own_group: group of the plain keys.
        group: group under which they were logged.
        testing: logged in ``trainer.test``.
        dataloader_idx: of the dataloader.
        num_dataloaders: number of dataloaders.

    Returns:
        Logged key → plain key.

    Example:
        >>> plain_keys(["own/median", "val_loss"], own_group="flatness", group="own")
        {'own/median': 'flatness/median'}
    """
    example = full_key(
        f"{own_group}/\0",
        group=group,
        testing=testing,
        dataloader_idx=dataloader_idx,
        num_dataloaders=num_dataloaders,
    )
    start, end = example.split("\0")
    return {
        name: f"{own_group}/{name[len(start) : len(name) - len(end)]}"
        for name in names
        if name.startswith(start) and name.endswith(end)
    }

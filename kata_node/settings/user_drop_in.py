"""The drop-in of the user from a file: in a cluster from a Secret, so that no ConfigMap has its passwords."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kata_node.errors import SettingsError
from kata_node.settings.config_file import read_config_file


def with_user_drop_in(values: Mapping[object, object], path: str) -> Mapping[object, object]:
    """Return ``values`` with the content of the file ``path`` as ``containerd.userDropIn``.

    If the values have a digest in ``containerd.userDropInSecret``, the file must have it. Raises
    :class:`SettingsError` if it has another one, cannot be read or is no text, or if the values have
    another drop-in.
    """
    where = f"--user-drop-in {path}"
    found = values.get("containerd")
    containerd = found if isinstance(found, dict) else {}
    secret = containerd.get("userDropInSecret")
    digest = secret.get("digest") if isinstance(secret, dict) else None
    if containerd.get("userDropIn"):
        raise SettingsError(
            "the values have containerd.userDropIn too, and only one of both can be the drop-in",
            where=where,
            hint="remove one of them",
        )
    try:
        text = read_config_file(Path(path), str(digest or ""), source="Secret").decode()
    except OSError as error:
        raise SettingsError(
            f"the drop-in cannot be read: {error.strerror}",
            where=where,
            hint="name a readable file; in a cluster, create the Secret that containerd.userDropInSecret "
            "names, with its key",
        ) from error
    except UnicodeDecodeError:
        # Not with the cause, which has the text.
        raise SettingsError("the drop-in is not UTF-8 text", where=where, hint="save it as UTF-8") from None
    others = {key: value for key, value in containerd.items() if key != "userDropInSecret"}
    return {**values, "containerd": {**others, "userDropIn": text}}

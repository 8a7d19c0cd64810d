"""`compress serve-key`"""

from pathlib import Path
from typing import Annotated

import typer

from compress.cli.common import JsonOption, emit


def command(
    keys: Annotated[Path, typer.Argument(metavar="FILE", help="File of keys for `compress serve --api-keys`.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who will hold the key; shown in the server's log.")],
    admin: Annotated[bool, typer.Option("--admin", help="Let the key also change which models are served.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make an API key, print it once, and add its hash to FILE; to revoke it, delete its line and restart."""
    from serve.keys import Role, add_key

    role = Role.ADMIN if admin else Role.USE
    secret = add_key(keys, name, role)
    emit({"name": name, "role": role.value, "key": secret}, secret, as_json=as_json)

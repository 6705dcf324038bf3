"""The `edgefl` command: finds the sub-command, loads only its module, and turns errors into one line and an exit code.

Exit codes: 0 done; 2 wrong input; 3 a peer sent something wrong; 4 this machine cannot do it now; 70 a bug in edgefl;
130 interrupted. Messages go to stderr as `error: ...`; results go to stdout.
"""

import importlib
import os
import sys
import traceback
from collections.abc import Mapping

import click

from edgefl import __version__
from edgefl.cli.process import complain
from edgefl.errors import EdgeflError

EXIT_BUG = 70
EXIT_INTERRUPTED = 130
DEBUG = "EDGEFL_DEBUG"

COMMANDS: Mapping[str, tuple[str, str]] = {
    "init": ("edgefl.cli.fleet:init", "Create a fleet directory: authority, keys, registry."),
    "provision": ("edgefl.cli.provision:provision", "Make a bundle that turns a board into a device."),
    "devices": ("edgefl.cli.fleet:devices", "List, show, tag, exclude and revoke the fleet's devices."),
    "broker": ("edgefl.cli.broker:broker", "Run the fleet's broker, or check one from outside."),
    "push": ("edgefl.cli.push:push", "Compress a model for every profile and announce it."),
    "rollout": ("edgefl.cli.rollout:rollout", "Bring a version to the fleet stage by stage."),
    "rollback": ("edgefl.cli.rollout:rollback", "Bring every device back to the version before."),
    "serve": ("edgefl.cli.serve:serve", "Run the server: deliver models, run rounds."),
    "train": ("edgefl.cli.train:train", "Start, stop and follow the training of a model."),
    "distil": ("edgefl.cli.distil:distil", "Let models learn from each other."),
    "keys": ("edgefl.cli.keys:keys", "List and replace the keys that sign the fleet's metadata."),
    "certificates": ("edgefl.cli.certificates:certificates", "What ends when; renew the broker's and the server's certificates."),
    "status": ("edgefl.cli.status:status", "The fleet at a glance."),
    "device": ("edgefl.cli.device:device", "What runs on the board."),
    "demo": ("edgefl.cli.demo:demo", "Everything on this machine."),
    "simulate": ("edgefl.cli.simulate:simulate", "Thousands of virtual devices on this machine."),
}


class LazyGroup(click.Group):
    """A group whose sub-commands are imported when they are run, so that a board never loads the server's code."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Names in the order of the table, which is the order of use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """Import a command. Raises EdgeflError when its module fails to import for a missing library."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        try:
            command = getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            if error.name and error.name.startswith("edgefl"):
                raise
            raise click.ClickException(
                f"`edgefl {cmd_name}` needs {error.name}, which is not installed. Install edgefl-fleet[server]."
            ) from error
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}:{attribute} is no command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        """The table's own help lines, so that `--help` imports nothing."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


def _debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:  # noqa: ARG001 - click's signature
    if value:
        os.environ[DEBUG] = "1"


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--debug",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_debug,
    help=f"Show tracebacks ({DEBUG}=1 does the same).",
)
@click.version_option(__version__, prog_name="edgefl")
def edgefl() -> None:
    """Deploy models to edge devices over MQTT and train them where the data is."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit; the only place where exceptions become exit codes."""
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run the command line; its exit code."""
    try:
        result = edgefl.main(args=arguments, prog_name="edgefl", standalone_mode=False)
    except Exception as error:  # noqa: BLE001 - the last line before the user; everything becomes a message
        if os.environ.get(DEBUG):
            traceback.print_exc()
        text, code = _explain(error)
        if not complain(text):
            click.echo(text, err=True)
        return code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return result if isinstance(result, int) else 0


def _explain(error: Exception) -> tuple[str, int]:
    """What to print for an exception, and the exit code."""
    match error:
        case EdgeflError():
            return f"error: {error}", error.exit_code
        case click.exceptions.Abort():
            return "interrupted", EXIT_INTERRUPTED
        case click.UsageError():
            hint = f" See `{error.ctx.command_path} --help`." if error.ctx else ""
            return f"error: {error.format_message()}{hint}", error.exit_code
        case click.ClickException():
            return f"error: {error.format_message()}", error.exit_code
        case _:
            name = type(error).__name__
            return f"error: unexpected {name}: {error}. This is a bug; {DEBUG}=1 shows where.", EXIT_BUG


if __name__ == "__main__":
    main()

"""The `murine` command: `murine <verb> [recipe=<name>] key=value ...`.

What comes in: the words after `murine`. What goes out: what the verb prints, one line on stderr for an error,
and the exit code: 0 done, 1 the run failed, 2 a mistake in what was asked, 130 interrupted.
"""

import os
import select
import sys
import traceback
from collections.abc import Sequence

from pretrain.durable import NO_SPACE
from pretrain.process_group import is_first_process, is_lost_process
from ray_jobs.config import VERBS, compose, find_verb, load, to_yaml
from ray_jobs.help import OPTIONS, command_help, verb_help
from ray_jobs.keys import ConfigError, did_you_mean

DONE, FAILED, MISTAKE, INTERRUPTED = 0, 1, 2, 130
PIPED_WIDTH = 120  # characters in a line of help where there is no terminal to ask
# A verb raises these for what its user can put right: a value, or a path that is missing, taken or no folder.
MISTAKES = (
    ValueError,
    FileNotFoundError,
    FileExistsError,
    MemoryError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with the words `argv` (default: those of the process); returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    options = ["--help" if word == "-h" else word for word in words if word.startswith("-")]
    arguments = [word for word in words if not word.startswith("-")]
    try:
        _run(options, arguments)
        sys.stdout.flush()
        return DONE
    except KeyboardInterrupt as error:
        return _complain(error, arguments, options, "interrupted; the same command resumes", INTERRUPTED)
    except BrokenPipeError as error:
        if _reader_has_left():
            return DONE
        return _complain(error, arguments, options, _line_of_failure(error, options), FAILED)
    except MISTAKES as error:
        return _complain(error, arguments, options, _one_line(error), MISTAKE)
    except Exception as error:
        return _complain(error, arguments, options, _line_of_failure(error, options), FAILED)


def _reader_has_left() -> bool:
    """Whether what this command prints to, as `head`, wants no more; then nothing is printed any longer."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLOUT)
        if not any(flags & (select.POLLERR | select.POLLHUP) for _, flags in poll.poll(0)):
            return False
    except ValueError:  # output that is no file, as in a notebook
        return False
    # Python flushes once more when it ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _run(options: list[str], arguments: list[str]) -> None:
    for option in options:
        if option not in OPTIONS:
            if "=" in option:
                raise ConfigError(f"'{option}': keys have no dashes, write {option.lstrip('-')}")
            raise ConfigError(
                f"unknown option '{option}'{did_you_mean(option, OPTIONS)} (options: {', '.join(OPTIONS)})"
            )
    if "--version" in options:
        print(f"murine {_version()}")
    elif not arguments:
        print(command_help())
    elif "--help" in options:
        print(_verb_help(arguments[0]))
    else:
        verb = find_verb(arguments[0])
        config = compose(verb.name, arguments[1:])
        if "--print-config" in options:
            print(to_yaml(config), end="")
        else:
            load(verb.run)(config)


def _verb_help(verb: str) -> str:
    import shutil

    width = shutil.get_terminal_size((PIPED_WIDTH, 0)).columns
    return verb_help(verb, width, sys.stdout.isatty())


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("murine")
    except PackageNotFoundError:
        return "(run from its source folder, not installed)"


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    lines = (line.strip() for line in str(error).splitlines())
    return " ".join(line for line in lines if line) or type(error).__name__


def _line_of_failure(error: Exception, options: list[str]) -> str:
    """What a user is told of an error that nothing has made a line of."""
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        where = f"for {error.filename}" if error.filename else "on the disk"
        return f"no space left {where}; free some, and the same command goes on"
    hint = "" if "--debug" in options else " (run again with --debug for the traceback)"
    return f"{type(error).__name__}: {_one_line(error)}{hint}"


def _complain(error: BaseException, arguments: list[str], options: list[str], line: str, code: int) -> int:
    if "--debug" in options:
        traceback.print_exception(error)
    verb = arguments[0] if arguments and arguments[0] in VERBS else None
    if not _is_told(error):
        print(f"murine {verb}: {line}" if verb else f"murine: {line}", file=sys.stderr)
    return code


def _is_told(error: BaseException) -> bool:
    """Whether a process that trains with others leaves an error to the first of them, or has said it (`told`)."""
    if is_first_process():
        return False
    everywhere = isinstance(error, (KeyboardInterrupt, *MISTAKES))
    return everywhere or is_lost_process(error) or getattr(error, "told", False)

"""Finding the hub that a command line names."""

import importlib
import sys
import traceback
from pathlib import Path
from types import ModuleType

from actorhub.core.errors import ConfigurationError
from actorhub.hub import Hub


def load_hub(reference: str) -> Hub:
    """Return the hub that `reference` (MODULE:HUB) names; modules of the current directory are found too.

    Raises:
        ConfigurationError: there is no such module or attribute, it is not a hub, or importing the module failed.
    """
    name, _, attribute = reference.partition(":")
    if not all(part.isidentifier() for part in name.split(".")) or not attribute.isidentifier():
        hint = f": did you mean {reference[:-3].replace('/', '.')}:hub?" if reference.endswith(".py") else ""
        raise ConfigurationError(f"{reference!r} is not MODULE:HUB, such as shop:hub{hint}")
    module = _import(name)
    found = vars(module).get(attribute)
    if isinstance(found, Hub):
        return found
    hubs = [f"{name}:{known}" for known, value in vars(module).items() if isinstance(value, Hub)]
    remedy = f"has {', '.join(hubs)}" if hubs else ""
    write = f"write `{attribute} = Hub()` there and register the entities"
    if found is None:
        raise ConfigurationError(
            f"{reference}: module {name} has no {attribute!r}: {f'it {remedy}' if hubs else write}"
        )
    what = f"{reference} is a {type(found).__name__}, not a Hub"
    raise ConfigurationError(f"{what}: {f'its module {remedy}' if hubs else write}")


def _import(name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name is not None and (name == exc.name or name.startswith(f"{exc.name}.")):
            raise ConfigurationError(
                f"there is no module {exc.name!r} in {here} or among the installed packages: "
                "run the command in the directory of the module, or set PYTHONPATH"
            ) from exc
        raise _failed(name, exc) from exc
    except (Exception, SystemExit) as exc:
        raise _failed(name, exc) from exc


def _failed(name: str, error: BaseException) -> ConfigurationError:
    """Return the error that says what importing `name` raised, and in which line of which file."""
    what = traceback.format_exception_only(error)[-1].strip()
    if isinstance(error, SyntaxError):
        return ConfigurationError(f"importing {name} failed: {what} ({error.filename}, line {error.lineno})")
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename]
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames[1:] else ""
    return ConfigurationError(f"importing {name} failed: {what}{where}")

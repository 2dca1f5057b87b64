"""What the entry points share: names of run folders, clear errors and exit codes. Imports nothing heavy."""

import difflib
import functools
import os
import re
import resource
import secrets
import shlex
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf

from vidcls.errors import UserError, find_user_error, one_line
from vidcls.memory import keep_freed_memory

Result = TypeVar("Result")

CONF = Path(__file__).parents[1] / "conf"
NO_MEMORY = ("start new thread", "allocate memory", "not enough memory", "Resource temporarily")
LISTS = ("run", "sweep", "data.decisions", "decisions")  # options that name a path or several: run=[A,B]
PATHS = {"run", "run_dir", "resume", "sweep.resume", "input", "output", "data.source", "data.decisions", "decisions"}
PATHS |= {"cache_dir", "paths.cache_dir", "paths.data_dir", "paths.runs_dir", "model.weights", "model.encoder.weights"}
QUOTES = ("'", '"')
# Messages of gloo and NCCL if the process at the other end is gone, and errors of torch's if it does not answer.
LOST_PROCESS = (
    *("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited"),
    *("Timed out waiting", "Application timeout", "collective operation timeout", "DistNetworkError", "DistStoreError"),
)
# Sections that may be null: their defaults hold, or there is none of them.
NULLABLE = re.compile(r"predict|data\.\w+|policy\.target|callbacks\.(?!(best|last|history|timing)$)\w+")
_HEX = "utf8_hex_"  # the prefix of an encoded key that Hydra's grammar does not allow
# What Hydra takes for a key rather than for a number or constant.
PLAIN_KEY = re.compile(r"(?!(?:true|false|null|nan|inf)\Z)[A-Za-z_][A-Za-z0-9_]*", re.IGNORECASE)


def launched_processes() -> int:
    """The number of processes that torchrun or srun has started for this run; 1 without them."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))  # not SLURM_NTASKS, which a script without srun has too


def new_run_dir(folder: str, given: str | None) -> str:
    """``given``, or <folder>/<date>_<time>_<short id>, the same for all processes of one torchrun."""
    if given:
        return given
    started, identity = time.time(), secrets.token_hex(2)
    if launched_processes() > 1:
        launcher = Path(f"/proc/{os.getppid()}/stat")
        if os.environ.get("WORLD_SIZE", "") != os.environ.get("LOCAL_WORLD_SIZE") or not launcher.exists():
            remedy = "Give run_dir=DIR, a new folder that all of them share."
            raise UserError("run_dir, for processes of srun or of several machines", "none", remedy, "missing-option")
        # man 5 proc: the tick in which the launcher was started, and the second in which the system was.
        tick = int(launcher.read_text().rpartition(")")[2].split()[19])
        booted = re.search(r"btime (\d+)", Path("/proc/stat").read_text())
        started = tick / os.sysconf("SC_CLK_TCK") + (int(booted[1]) if booted else 0)
        identity = f"{os.getppid():x}"
    return f"{folder}/{time.strftime('%Y-%m-%d_%H-%M-%S', time.localtime(started))}_{identity}"


# Cached, as it must be the same each time.
OmegaConf.register_new_resolver("new_run_dir", new_run_dir, use_cache=True, replace=True)


def run_folder() -> Path:
    return Path(HydraConfig.get().runtime.output_dir)


def compose_config(name: str, *overrides: str) -> DictConfig:
    """A configuration of conf/ as the command line composes it, such as ``compose_config("train", "seed=1")``."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, list(overrides))


def in_sweep() -> bool:
    """Whether this process works for a job of a multirun."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def trusted_packages(cfg: DictConfig) -> tuple[str, ...]:
    """The packages whose classes a run folder may name, from the option ``trust``: one name or a list."""
    trust = cfg.trust
    return (trust,) if isinstance(trust, str) else tuple(str(name) for name in trust or ())


def quote_overrides(*more: str) -> None:
    """Quotes the values of `PATHS` and of ``more`` options, which may hold characters of Hydra's grammar."""
    multirun = any(text in ("-m", "--multirun") for text in sys.argv)
    for index, text in enumerate(sys.argv):
        option, _, value = text.partition("=")
        several_values = re.search(r",|^(choice|range|interval|glob|shuffle|sort)\(", value)
        swept = multirun and option != "sweep.resume" and several_values
        if index and re.fullmatch(r"null|\[?[\d.+-]+\]?", value) and (CONF / option).is_dir():
            sys.argv[index] = f"{option}={quote(value)}"  # no name of a file, for which Hydra ends with a traceback
        elif (
            index and option in PATHS.union(more) and value not in ("", "null") and value[0] not in "'\"" and not swept
        ):
            several = option in LISTS and value[0] == "[" and value[-1] == "]" and not Path(value).exists()
            sys.argv[index] = f"{option}={_quote_list(value) if several else quote(value)}"


def quote(value: str) -> str:
    """A value quoted for Hydra's grammar, which then takes it for a string."""
    escaped = value.replace("'", "\\'")
    return f"'{escaped}'"


def shell_command(*words: str) -> str:
    """A command for a shell, without the quotes of Hydra's grammar around paths that need none."""
    return shlex.join(re.sub(r"='([\w.-]*/[\w./-]*)'$", r"=\1", word, flags=re.ASCII) for word in words)


def _quote_list(value: str) -> str:
    """A list whose items are quoted, as those with commas must be already."""
    items = [item.strip() for item in re.findall(r"'[^']*'|\"[^\"]*\"|[^,]+", value[1:-1])]
    return f"[{','.join(item if item[:1] in QUOTES else quote(item) for item in items)}]"


def folders_of(option: str, value: Any) -> list[Path]:
    """The folders that an option names: one path, or a list of them; raises `UserError` for an empty list."""
    folders = [Path(str(one)) for one in (value if isinstance(value, ListConfig | list) else [value])]
    if not folders:
        raise UserError(f"a folder in {option}", "an empty list", f"Check {option}=.", option)
    return folders


def allow_new_keys(group: str) -> None:
    """Allows ``group.name.option=value`` on the command line for any name, such as that of a class.

    Adds the ``++`` that Hydra requires, and encodes names that are not ASCII identifiers, see `key_name`.
    """
    for index, text in enumerate(sys.argv[1:], 1):
        named = re.fullmatch(rf"{re.escape(group)}\.(.+)\.(\w+)=([^=]*)", text)
        if named and (not PLAIN_KEY.fullmatch(named[1]) or named[1].startswith(_HEX)):
            text = f"{group}.{_HEX}{os.fsencode(named[1]).hex()}.{named[2]}={named[3]}"
        if text.startswith((f"{group}.", f"{group}=")):
            sys.argv[index] = f"++{text}"


def key_name(key: str) -> str:
    """Decodes a key of `allow_new_keys`."""
    return os.fsdecode(bytes.fromhex(key.removeprefix(_HEX))) if key.startswith(_HEX) else key


def check_missing(cfg: DictConfig) -> None:
    """Raises `UserError` if an option without a default was not given, or a local path is a URL."""
    if missing := sorted(OmegaConf.missing_keys(cfg)):
        remedy = f"Give {missing[0]}=... on the command line."
        raise UserError(f"a value for {missing[0]}", "none", remedy, "missing-option")
    for option in sorted(PATHS - {"input", "data.source", "decisions", "data.decisions"}):
        value = OmegaConf.select(cfg, option, throw_on_resolution_failure=False)
        if isinstance(value, str) and "://" in value:  # results would lie in a folder named s3:
            remedy = "Give a local folder, or one where the storage is mounted, and copy it when the command has ended."
            raise UserError(f"a path of this machine in {option}", value, remedy, option)


def check_overrides(cfg: DictConfig, hydra: Any) -> None:
    """Compares what the command line gives with the composed defaults; ``hydra`` is Hydra's own part of ``cfg``.

    Raises:
        UserError: an option that nothing reads is added, as with +sed=1, which Hydra proposes for a misspelt name; or a
            value replaces a section, a list or a flag, such as predict=null, trust=1 and report.blur=off.
    """
    loader = GlobalHydra.instance().config_loader()
    given = OverridesParser.create(loader).parse_overrides(list(hydra.overrides.task))
    values = [one for one in given if not one.is_delete() and not loader.get_group_options(one.key_or_group)]
    others = [str(one.input_line) for one in given if one not in values]  # such as model=i3d
    defaults = loader.load_configuration(hydra.job.config_name, [*hydra.overrides.hydra, *others], RunMode.MULTIRUN)
    for override in values:
        option, value = override.key_or_group, override.value()
        for name in [f"{option}.{key}" for key in value] if isinstance(value, dict) else [option]:
            parent, _, key = name.rpartition(".")
            section = OmegaConf.select(defaults, parent) if parent else defaults
            if section is None or (isinstance(section, DictConfig) and key not in section.keys()):  # noqa: SIM118 (???)
                _check_added(cfg, name)
        if override.is_sweep_override() or isinstance(value, dict):
            continue
        # Not resolved: without run_dir=, there is none for the processes of several machines.
        default = OmegaConf.select(defaults, option, throw_on_resolution_failure=False)
        if isinstance(default, DictConfig) and (value is not None or not NULLABLE.fullmatch(option)):
            remedy, group = f"Set {option}.{[*default, 'NAME'][0]}=... and so on.", option.replace(".", "/")
            if choices := loader.get_group_options(group):
                remedy = f"Choose {group}={' or '.join(choices)}."
            raise UserError(f"{option} to hold options", override.get_value_element_as_str(), remedy, option)
        if value is None and option in PATHS and (isinstance(default, str) or OmegaConf.is_missing(section, key)):
            raise UserError(f"a path in {option}", "null", f"Give {option}=PATH.", option)
        if isinstance(default, bool) and str(value).lower() in ("yes", "no", "on", "off"):  # texts, and so true
            raise UserError(f"{option} to be true or false", str(value), f"Change {option}.", option)
        if isinstance(default, ListConfig) and isinstance(value, int | float) and option != "optim.C":  # one or several
            raise UserError(f"{option} to be a list", str(value), f"Give {option}=[{value}].", option)


def _check_added(cfg: DictConfig, option: str) -> None:
    parts = option.split(".")
    nodes = [cfg, *(OmegaConf.select(cfg, ".".join(parts[: end + 1])) for end in range(len(parts)))]
    has_target = any(isinstance(node, DictConfig) and "_target_" in node for node in nodes)
    if (has_target and parts[0] != "data") or parts[:2] == ["policy", "target"]:
        return  # any name may be added there
    beside = [str(name) for name in nodes[-2] or () if name != parts[-1]]
    alike = difflib.get_close_matches(parts[-1], beside, 1)
    remedy = f"Did you mean {'.'.join([*parts[:-1], *alike])}?" if alike else "Those in conf/ are all."
    raise UserError("an option that there is", f"+{option}", remedy, "unknown-option")


def user_errors_exit(main: Callable[[DictConfig], Result]) -> Callable[[DictConfig], Result]:
    """Exits with one clear line and code 2 for a `UserError`, 130 for Ctrl-C; ``debug=true`` adds tracebacks."""

    @functools.wraps(main)
    def guarded(cfg: DictConfig) -> Result:
        keep_freed_memory()
        of_threads: list[UserError] = []
        if not cfg.debug:
            threading.excepthook = functools.partial(_end_thread, of_threads)
        try:
            if not in_sweep():  # which has checked them before its jobs
                check_overrides(cfg, HydraConfig.get())
            check_missing(cfg)
            result = main(cfg)
            for message in of_threads:
                print(f"warning: {message}", file=sys.stderr)
            return result
        except Exception as error:
            user_error = find_user_error(error) or _explain(error)
            if user_error is None:
                os.environ["HYDRA_FULL_ERROR"] = "1"  # or Hydra shows only the last lines
                raise
            if cfg.debug:
                traceback.print_exc()
            _remove_if_empty(run_folder())
            if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the process is ending already
            print(f"error: {user_error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            if cfg.debug:
                raise
            hint = f"; continue with: {_resume_command(cfg)}" if "resume" in cfg else ""
            print(f"interrupted{hint}", file=sys.stderr)
            sys.exit(130)

    return guarded


def _end_thread(errors: list[UserError], ended: threading.ExceptHookArgs) -> None:
    if error := find_user_error(ended.exc_value):  # such as of TensorBoard's thread; the next curve raises it again
        errors.append(error)
    else:
        threading.__excepthook__(ended)


def lost_process(got: str, folder: Path | None = None) -> UserError:
    """The error of a process whose run, by default that of the command, has lost another one."""
    resume = shlex.quote(str(folder or run_folder()))
    remedy = f"See what it printed; the same launcher with resume={resume} continues."
    return UserError("all processes of the run to stay alive", got, remedy, "lost-process")


def one_of_several() -> bool:
    """Whether other processes take part in this run, whatever has started them."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return True  # also when Lightning has removed WORLD_SIZE, at the end of a run
    return max(int(os.environ.get("WORLD_SIZE", 1)), launched_processes()) > 1


def _explain(error: Exception) -> UserError | None:
    """A `UserError` for an error of Hydra or of the system; None for bugs."""
    why, limit = one_line(error, 300), resource.getrlimit(resource.RLIMIT_AS)[0]
    if isinstance(error, InstantiationException):
        remedy = "Change the options beside that _target_; debug=true shows the traceback."
        return UserError("options that each _target_ takes", why, remedy, "instantiation")
    if one_of_several() and any(text in f"{type(error).__name__}: {why}" for text in LOST_PROCESS):
        return lost_process(f"one that has ended, or cannot be reached ({why[:120]})")
    memory = isinstance(error, ImportError | MemoryError) or any(text in why for text in NO_MEMORY)
    if memory and limit != resource.RLIM_INFINITY:
        remedy = "Lift the limit: ulimit -v unlimited."
        return UserError("more address space", f"ulimit -v {limit // 1024}: {why}", remedy, "address-space")
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "allocate memory" in why:
        remedy = "Free some, or lower data.batch_size, data.num_frames or data.resolution."
        return UserError("enough memory, of the GPU if one is used", why, remedy, "memory")
    if "DataLoader worker" in why:
        remedy = "Free some memory (of a container, give --shm-size too), or lower data.num_workers."
        return UserError("loader processes that stay alive", why, remedy, "lost-loader")
    return None


def _resume_command(cfg: DictConfig) -> str:
    if in_sweep():
        return sweep_resume_command(cfg, HydraConfig.get().sweep.dir)
    resume = f"resume={shlex.quote(str(run_folder()))}"
    return f"the same launcher and {resume}" if launched_processes() > 1 else f"python {sys.argv[0]} {resume}"


def sweep_resume_command(cfg: DictConfig, folder: str | Path) -> str:
    """What continues a sweep or a cross-validation, in words."""
    option = "output" if "output" in cfg else "sweep.resume"
    return f"the same command and {option}={shlex.quote(str(folder))}"


def _remove_if_empty(folder: Path) -> None:
    # Hydra creates the folder that `resume` names.
    if folder.is_dir() and folder != Path.cwd() and not any(folder.iterdir()):
        folder.rmdir()


def print_config(cfg: DictConfig) -> None:
    """Prints the resolved configuration as a tree, one branch per group."""
    from rich import print as rich_print
    from rich.syntax import Syntax
    from rich.tree import Tree

    tree, plain = Tree("configuration"), OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    groups: dict[Any, Any] = {key: value for key, value in plain.items() if isinstance(value, dict)}
    options = {key: value for key, value in plain.items() if key not in groups}
    for name, content in {"(top level)": options, **groups}.items():
        tree.add(str(name)).add(Syntax(OmegaConf.to_yaml(content), "yaml"))
    rich_print(tree)


def short_names(options: Sequence[str]) -> list[str]:
    """The last part of each option's name; the full names where two of them would be the same."""
    short = [option.rpartition(".")[2] for option in options]
    return short if len(set(short)) == len(short) else list(options)


def value_text(value: Any) -> str:
    """An option's value as tables and plots show it, with four digits of a fraction."""
    return format(value, ".4g" if value % 1 else ".0f") if isinstance(value, float) else str(value)

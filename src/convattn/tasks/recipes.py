"""Recipes: YAML files and ``key=value`` overrides resolved into a checked :class:`~convattn.tasks.config.Recipe`."""

import dataclasses
import difflib
import math
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from convattn.errors import UserError, user_path
from convattn.tasks.config import Recipe
from convattn.tasks.plain import read_settings, read_yaml
from convattn.tasks.reach import fetches, reaching, refuse_reaching

T = TypeVar("T")
COMMAND_LINE = "command line"


def nearest(word: str, known: Iterable[str], noun: str) -> str:
    """Return the hint that follows an unknown word: the nearest known one and what exists.

    Example:
        >>> nearest("epoch", ["epochs", "seed"], "keys")
        'did you mean epochs? keys: epochs, seed'
    """
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{hint}{noun}: {', '.join(known)}"


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the package.

    Example:
        >>> "digits" in recipe_names()
        True
    """
    files = (resources.files("convattn") / "recipes").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def load_recipe(name: str, overrides: Mapping[str, Any] | None = None, *, trust: bool = False) -> Recipe:
    """Return the recipe of that name, or of a YAML file, with dotted overrides such as ``{"optimizer.lr": 0.1}``.

    Args:
        name: A recipe of :func:`recipe_names`, or the path of a file that ends in ``.yaml``.
        overrides: Settings that take the place of the recipe's.
        trust: Whether a file may name networks that open other files or the network, as ``hf-hub:owner/name`` does;
            overrides always may.

    Raises:
        UserError: for an unknown recipe, key or value, naming the file and the key.

    Example:
        >>> load_recipe("digits", {"optimizer.lr": 0.5, "epochs": 3}).optimizer.lr
        0.5
    """
    if name.endswith((".yaml", ".yml")):
        return read_recipe(user_path(name), overrides, trust=trust)
    if name not in recipe_names():
        raise UserError(f"no recipe {name!r}: {nearest(name, recipe_names(), 'recipes')} (or a path to a .yaml file)")
    text = (resources.files("convattn") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    return parse_recipe(text, f"recipe {name}", overrides, trust=True)


def read_recipe(path: Path, overrides: Mapping[str, Any] | None = None, *, trust: bool = False) -> Recipe:
    """Return the recipe in a YAML file, with overrides; ``trust`` as for :func:`load_recipe`."""
    return parse_recipe(read_settings(path), str(path), overrides, trust=trust)


def parse_recipe(text: str, source: str, overrides: Mapping[str, Any] | None = None, *, trust: bool = False) -> Recipe:
    """Return the recipe that a YAML text holds; ``source`` names it in errors, ``trust`` as for :func:`load_recipe`."""
    mapping = read_yaml(text, source)
    overrides = overrides or {}
    recipe = build(Recipe, {} if mapping is None else mapping, source)
    recipe = for_model(recipe, str(overrides.get("model", recipe.model)), source)
    by_file = recipe
    for key, value in overrides.items():
        if key.partition(".")[0] == "per_model":
            raise UserError(f"{COMMAND_LINE}: per_model is for recipe files; give the settings themselves")
        recipe = override(recipe, key, value)
    check_together(recipe, source)
    found = reaching(by_file.model, _network_options(by_file), fetching=fetches(_network_options(recipe)))
    refuse_reaching(source, _not_replaced(found, overrides), trust=trust)
    return recipe


def _network_options(recipe: Recipe) -> dict[str, Any]:
    return {"pretrained": recipe.pretrained, "model_args": recipe.model_args, "network.args": recipe.network.args}


def _not_replaced(found: Iterable[tuple[str, Any]], overrides: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the settings of a file that no override takes the place of: what is typed is the user's own word."""
    for name, value in found:
        if not any(f"{name}.".startswith(f"{said}.") for said in overrides):
            yield name, value


def parse_overrides(words: Iterable[str]) -> dict[str, Any]:
    """Return the overrides that ``key=value`` words name, their values read as YAML.

    Example:
        >>> parse_overrides(["optimizer.lr=1e-2", "ema.decay=null", "model_args.stem=small"])
        {'optimizer.lr': '1e-2', 'ema.decay': None, 'model_args.stem': 'small'}
    """
    overrides = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise UserError(f"{word!r} is no setting: write key=value, such as optimizer.lr=0.1")
        overrides[key] = read_yaml(value, key)
    return overrides


def for_model(recipe: Recipe, model: str, source: str) -> Recipe:
    """Return the recipe with what its table ``per_model`` keeps for that model filled in, and the table gone.

    Every row is checked, whether it is for this model or not; ``source`` names the recipe in errors.

    Example:
        >>> table = {"b*": {"epochs": 3, "optimizer": {"lr": 0.5}}, "*2": {"model_args": {"depth": 2}}}
        >>> recipe = for_model(Recipe("a1", per_model=table), "b2", "mine")
        >>> recipe.epochs, recipe.optimizer.lr, recipe.model_args
        (3, 0.5, {'depth': 2})
    """
    chosen = dataclasses.replace(recipe, per_model={})
    for pattern, settings in recipe.per_model.items():
        where = f"{source}: per_model {pattern!r}"
        changed = chosen
        for key, value in settings.items():
            if key in ("model", "per_model"):
                raise UserError(f"{where}: {key} cannot be set for one model")
            if isinstance(value, Mapping) and isinstance(old := getattr(changed, key, None), dict):
                value = {**old, **value}
            changed = override(changed, key, value, source=where)
        if fnmatchcase(model, pattern):
            chosen = changed
    return chosen


def override(config: T, key: str, value: Any, prefix: str = "", source: str = COMMAND_LINE) -> T:
    """Return the configuration with one dotted key changed; ``source`` names in errors who asked for it."""
    head, _, rest = key.partition(".")
    known = _hints(type(config))
    if head not in known:
        raise UserError(f"{source}: unknown key {prefix + key!r}: {nearest(head, known, 'keys')}")
    current = getattr(config, head)
    if dataclasses.is_dataclass(current):
        if not rest and not isinstance(value, Mapping):
            inside = ", ".join(f"{prefix}{head}.{name}" for name in _hints(type(current)))
            raise UserError(f"{source}: {prefix}{head} is a section; its keys: {inside}")
        for inner, item in [(rest, value)] if rest else value.items():
            current = override(current, inner, item, f"{prefix}{head}.", source)
        return dataclasses.replace(config, **{head: current})
    if rest:
        if not isinstance(current, dict):
            raise UserError(f"{source}: {prefix}{head} is one value, it has no key {rest!r}")
        value = _with(current, rest, value)
    return dataclasses.replace(config, **{head: _field_value(type(config), head, value, source, prefix)})


def _with(mapping: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Return a mapping with one dotted key changed, the mappings on the way made where there are none."""
    head, _, rest = key.partition(".")
    if rest:
        inner = mapping.get(head)
        value = _with(inner if isinstance(inner, Mapping) else {}, rest, value)
    return {**mapping, head: value}


def build(cls: type[T], mapping: Any, source: str, prefix: str = "") -> T:
    """Return the dataclass filled from a mapping, every key and value checked."""
    if not isinstance(mapping, Mapping):
        raise UserError(f"{source}: {prefix.rstrip('.') or 'the file'} must be keys with values, got {mapping!r}")
    known = _hints(cls)
    for key in mapping:
        if key not in known:
            raise UserError(f"{source}: unknown key {prefix}{key}: {nearest(str(key), known, 'keys')}")
    missing = [f.name for f in dataclasses.fields(cls) if _required(f) and f.name not in mapping]  # type: ignore[arg-type]
    if missing:
        raise UserError(f"{source}: the key {prefix}{missing[0]} is missing")
    return cls(**{key: _field_value(cls, key, value, source, prefix) for key, value in mapping.items()})


def to_mapping(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as plain YAML types, the inverse of :func:`build`."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list | tuple) else value

    return plain(dataclasses.asdict(recipe))


def check_together(recipe: Recipe, source: str) -> None:
    """Raise where two settings, each valid, exclude one another."""
    if recipe.mix.on and recipe.batch_size % 2:
        raise UserError(f"{source}: batch_size {recipe.batch_size} is odd, but mix pairs the images: make it even")
    augment = {f"augment.{key}": getattr(recipe.augment, key) for key in ("crop_scale", "crop_ratio")}
    for key, (low, high) in {**augment, "segmentation_augment.scale": recipe.segmentation_augment.scale}.items():
        if not 0 < low <= high:
            raise UserError(f"{source}: {key} must be [low, high] with 0 < low <= high, got [{low}, {high}]")
    longest, sides = recipe.detection_augment.max_size, recipe.detection_augment.short_sides
    if sides and max(sides) > longest:
        raise UserError(
            f"{source}: detection_augment.max_size must be at least {max(sides)}, a short side, got {longest}"
        )
    window, stride = recipe.evaluation.window, recipe.evaluation.stride
    if stride is not None and stride > window:
        raise UserError(
            f"{source}: evaluation.stride must be at most the window, {window}, got {stride}: it would leave gaps"
        )
    lr, lowest, first = recipe.optimizer.lr, recipe.schedule.min_lr, recipe.schedule.warmup_lr
    if recipe.schedule.name in ("cosine", "poly", "tanh") and lowest > lr:
        raise UserError(f"{source}: schedule.min_lr must be at most optimizer.lr, {lr:g}, got {lowest:g}")
    if (recipe.schedule.warmup_steps or recipe.schedule.warmup) and first > lr:
        raise UserError(f"{source}: schedule.warmup_lr must be at most optimizer.lr, {lr:g}, got {first:g}")
    milestones = recipe.schedule.milestones
    if recipe.schedule.name == "multistep" and (not milestones or list(milestones) != sorted(set(milestones))):
        raise UserError(
            f"{source}: schedule.milestones must be rising epochs, such as [30, 60], got {list(milestones)}"
        )
    for key in ("model_args", "network.args"):
        _check_drops(recipe.model_args if key == "model_args" else recipe.network.args, f"{source}: {key}")


def _check_drops(arguments: Mapping[str, Any], where: str) -> None:
    """Raise for an argument that says how often something is dropped, as ``drop_path_rate``, and is no such part."""
    for key, value in arguments.items():
        if isinstance(value, Mapping):
            _check_drops(value, f"{where}.{key}")
        elif "drop" in key and not all(0 <= number < 1 for number in _numbers(value)):
            raise UserError(f"{where}.{key} must be at least 0 and less than 1, got {value!r}")


def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _required(item: dataclasses.Field) -> bool:  # type: ignore[type-arg]
    return item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING


def _field_value(cls: type, key: str, value: Any, source: str, prefix: str) -> Any:
    hint = _hints(cls)[key]
    if dataclasses.is_dataclass(hint):
        return build(hint, value, source, f"{prefix}{key}.")  # type: ignore[arg-type]
    try:
        converted = _convert(hint, value)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{source}: {prefix}{key} must be {_describe(hint)}, got {value!r}") from None
    wanted = _unmet(next(f for f in dataclasses.fields(cls) if f.name == key), converted)  # type: ignore[arg-type]
    if wanted:
        raise UserError(f"{source}: {prefix}{key} must be {wanted}, got {value!r}")
    return converted


def _unmet(item: dataclasses.Field, value: Any) -> str:  # type: ignore[type-arg]
    """Return what a field wants of its value where it does not have it: its limits, finite numbers, some text."""
    low, high = item.metadata.get("min", -math.inf), item.metadata.get("max", math.inf)
    pattern = item.metadata.get("pattern", "")
    if isinstance(value, str):
        if pattern and not re.fullmatch(pattern, value):
            return f"a text such as {item.metadata['example']}"
        return "some text" if not value.strip() and item.default != "" else ""
    if any(isinstance(number, float) and not math.isfinite(number) for number in _numbers(value)):
        return "finite"
    if any(number < low for number in _numbers(value)):
        return f"at least {low:.10g}"
    return f"at most {high:.10g}" if any(number > high for number in _numbers(value)) else ""


def _numbers(value: Any) -> Iterator[int | float]:
    """Yield the numbers of a value, at any depth."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def _convert(hint: Any, value: Any) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(args, value)
    if origin is Literal:
        if value in args:
            return value
    elif origin is tuple:
        if isinstance(value, list | tuple) and args[-1] is Ellipsis:
            return tuple(_convert(args[0], item) for item in value)
        if isinstance(value, list | tuple) and len(value) == len(args):
            return tuple(_convert(arg, item) for arg, item in zip(args, value, strict=True))
    elif origin is dict:
        if isinstance(value, Mapping):
            return {str(key): _convert(args[1], item) for key, item in value.items()}
    elif hint is float:
        # YAML 1.1 reads 1e-3 as a word
        if not isinstance(value, bool):
            return float(value)
    elif isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise TypeError


def _convert_union(members: tuple[Any, ...], value: Any) -> Any:
    if value is None and type(None) in members:
        return None
    for member in members:
        if member is type(None):
            continue
        try:
            return _convert(member, value)
        except (TypeError, ValueError, OverflowError):
            continue
    raise TypeError


def _describe(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(arg) for arg in args)
    if origin is Literal:
        return "one of " + ", ".join(args)
    if origin is tuple:
        return "a list of numbers" if args[-1] is Ellipsis else f"a list of {len(args)} numbers"
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    return names.get(hint, "keys with values")

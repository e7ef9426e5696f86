"""Where settings come from, so that an error calls them what the user wrote."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from ..errors import SettingError, SettingsError, UsageError, value_text


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where settings come from.

    Attributes:
        text: What holds them, such as a file.
        options: How those are written that the command line gives, by key, such as "--no-prune" for "prune".
    """

    text: str = "recipe"
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def inner(self, part: str, own: Iterable[str]) -> Origin:
        """That of a table within, which has these keys of its own."""
        hidden = set(own)
        return Origin(f"{self.text}: {part}", {k: option for k, option in self.options.items() if k not in hidden})

    def name(self, keys: Iterable[str]) -> str:
        """What settings are called."""
        keys = list(keys)
        held = ", ".join(key for key in keys if key not in self.options)
        return ", ".join(
            [self.options[key] for key in keys if key in self.options] + [f"{self.text}: {held}"] * bool(held)
        )

    def error(self, key: str, value: object, problem: str) -> UsageError:
        """The error for a setting, see `SettingError`; a flag is its own value."""
        if key in self.options and isinstance(value, bool):
            return UsageError(f"{self.options[key]}{problem}")
        return UsageError(f"{self.name([key])} is {value_text(value)}{problem}")

    @contextmanager
    def stated(self) -> Iterator[None]:
        """While errors about settings that know keys alone are raised: they become errors with their origin."""
        try:
            yield
        except (SettingError, SettingsError) as error:
            raise self.restate(error) from error

    def restate(self, error: SettingError | SettingsError) -> UsageError:
        """An error that knows keys alone, with their origin; it advises to write where that was written."""
        if isinstance(error, SettingsError):
            why = f": {self.name(error.why)}" if error.why else ""
            return UsageError(f"{self.name(error.keys)}{error.problem}{why}")
        advice = ""
        if error.remedy is not None:
            key, value = error.remedy
            on_line = error.key in self.options
            advice = f"give --{key.replace('_', '-')} {value}" if on_line else f"set {key} = {value_text(value)}"
        return self.error(error.key, error.value, error.problem + (f"; {advice}, too" if advice else ""))

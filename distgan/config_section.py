"""What holds of every section of a configuration, whatever its keys."""

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

_MOST_VALUES = 64


class Section(BaseModel):
    """Base of every section: frozen, and strict about unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_answer_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """`loss.gamma=on` is a slip, though pydantic takes true for 1."""
        values = value if isinstance(value, list | tuple) else (value,)
        answers = cls.model_fields[str(info.field_name)].annotation is bool
        if not answers and any(isinstance(each, bool) for each in values):
            raise ValueError("true and false (yes, no, on, off) are no value for this key")
        return value

    @field_validator("*")
    @classmethod
    def _of_a_sane_size(cls, value: Any) -> Any:
        """Numbers that a message can quote and lists that one can read."""
        values = value if isinstance(value, tuple) else (value,)
        if len(values) > _MOST_VALUES:
            raise ValueError(f"at most {_MOST_VALUES} values")
        if any(isinstance(number, int) and abs(number) >= 2**63 for number in values):
            raise ValueError("must be less than 2**63")
        return value

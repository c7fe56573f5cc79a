"""What every client's conversation shares: one tool whose arguments a model of any size can only get right."""

from typing import Literal

from pydantic import BaseModel

City = Literal["Paris", "Rome"]
QUESTION = "What is the weather in Paris?"
FORECAST = "21 degrees and sunny"
MAX_TOKENS = 48


class Weather(BaseModel):
    """Get the weather of a city."""

    city: City


SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}

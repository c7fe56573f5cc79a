"""LangChain's standard integration tests for a chat model, with ChatOpenAI. Where to: BASE_URL and MODEL."""

import os
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests


class TestChatOpenAI(ChatModelIntegrationTests):  # type: ignore[misc]
    """The features this server has; the suite skips what is not claimed."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "base_url": os.environ["BASE_URL"],
            "api_key": "none",
            "model": os.environ["MODEL"],
            "temperature": 0,
            "max_tokens": 200,
            "stream_usage": True,
        }

    @property
    def has_tool_choice(self) -> bool:
        return True

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def structured_output_kwargs(self) -> dict[str, Any]:
        return {"method": "json_schema"}

    @property
    def model_override_value(self) -> str:
        return "default"

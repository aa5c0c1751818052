"""PARENT. OpenAI's Responses: input items, output items with typed events, stored responses."""

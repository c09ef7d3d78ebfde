# SPDX-License-Identifier: Apache-2.0
"""The options of the front door: who gets in, how large a request may be, what it may ask for."""

from typing import Literal

from pydantic import BaseModel, ByteSize

from aerie.server.option import Name, option

UnknownFields = Literal["refuse", "ignore"]
ControlTokens = Literal["refuse", "accept"]
JsonWhitespace = Literal["none", "any"]


class AccessSettings(BaseModel):
    """Who gets in, and how."""

    api_key_file: Name | None = option(
        "Access",
        None,
        "File of API keys, one `NAME:SHA256` a line, as `aerie key NAME` prints it; read again when it changes.",
        default_text="no keys: everybody who reaches the port gets in",
    )
    insecure_no_auth: bool = option("Access", False, "Listen beyond the loopback address although there are no keys.")
    key_concurrency: int | None = option(
        "Access",
        None,
        "Most answers of one key at a time, each of a request's prompts × `n` counted; more are answered 429.",
        default_text="no limit",
        ge=1,
    )
    cors_origins: Name | None = option(
        "Access",
        None,
        "Origins, separated by commas, whose pages in a browser may call the API.",
        default_text="none",
    )
    allowed_hosts: Name | None = option(
        "Access",
        None,
        "Names, separated by commas and without ports, that clients may call the server by (the `Host` header); "
        "`*.example.com` is every name below it, `*` any name at all. The probes answer to any.",
        default_text="on a loopback address without keys `localhost`, `127.0.0.1`, `[::1]` and `--host`; else any",
    )
    max_connections: int = option(
        "Access",
        1024,
        "Most open connections; beyond them the one longest idle is closed, or else the one longest within its "
        "headers, or else the new one.",
        ge=1,
    )
    keep_alive_seconds: int = option(
        "Access",
        75,
        "Time for which a connection without a request stays open. It must be longer than clients and load balancers "
        "keep theirs (most up to 60 s): a request that meets a closing connection is lost.",
        ge=1,
        le=3600,
    )
    max_header_bytes: ByteSize = option(
        "Access", ByteSize(32 << 10), "Longest request line and headers together.", default_text="32KiB", ge=1024
    )
    header_seconds: float = option(
        "Access", 10.0, "Time in which a request's headers must have arrived.", gt=0, le=3600
    )
    body_seconds: float = option("Access", 30.0, "Time in which a request's body must have arrived.", gt=0, le=3600)
    write_seconds: float = option(
        "Access",
        30.0,
        "A client that takes no byte of its answer for so long is disconnected, and its request aborted.",
        gt=0,
        le=3600,
    )


class TlsSettings(BaseModel):
    """HTTPS instead of HTTP; the names are those of vLLM and uvicorn."""

    ssl_certfile: Name | None = option(
        "TLS",
        None,
        "PEM file of the server's certificate, and those between it and its authority: serve HTTPS alone, TLS 1.2 or "
        "later.",
        default_text="plain HTTP",
    )
    ssl_keyfile: Name | None = option(
        "TLS", None, "PEM file of the certificate's private key.", default_text="in the file of `--ssl-certfile`"
    )
    ssl_password_file: Name | None = option(
        "TLS", None, "File that holds the key's password and nothing else.", default_text="the key has none"
    )
    ssl_ca_certs: Name | None = option(
        "TLS", None, "PEM file of the authorities that clients' certificates come from.", default_text="none"
    )
    ssl_cert_reqs: int = option(
        "TLS", 0, "Whether clients show a certificate: 0 none is asked for, 1 those who have one, 2 all.", ge=0, le=2
    )


class LimitSettings(BaseModel):
    """What a request may ask for."""

    max_body_bytes: ByteSize = option(
        "Limits", ByteSize(4 << 20), "Longest body of a request.", default_text="4MiB", ge=1024
    )
    max_json_depth: int = option("Limits", 64, "Deepest nesting of a body's objects and arrays.", ge=4, le=200)
    max_json_values: int = option(
        "Limits", 1 << 16, "Most strings (keys included), objects and arrays of a body.", ge=1024
    )
    unknown_fields: UnknownFields = option(
        "Limits", "refuse", "Fields that no API of the route has: answer 400 by name, or leave them out."
    )
    control_tokens: ControlTokens = option(
        "Limits", "refuse", "Control tokens such as `<|im_end|>` inside the messages of a chat."
    )
    max_choices: int = option("Limits", 8, "Largest `n`.", ge=1, le=128)
    max_prompts: int = option("Limits", 64, "Most prompts of one completion request.", ge=1, le=1024)
    max_messages: int = option("Limits", 1024, "Most messages of one chat request.", ge=1)
    max_parts: int = option(
        "Limits", 4096, "Most content parts of the messages of one request together, and most `documents`.", ge=1
    )
    max_tools: int = option("Limits", 128, "Most tools of one chat request.", ge=1)
    max_logprobs: int = option("Limits", 20, "Largest `top_logprobs`, `logprobs` and `prompt_logprobs`.", ge=0)
    max_stop_strings: int = option("Limits", 16, "Most `stop` strings, each of 256 characters at most.", ge=1)
    max_token_ids: int = option(
        "Limits", 1024, "Most entries of `logit_bias`, `bad_words` and of lists of token ids.", ge=1
    )
    max_schema_bytes: ByteSize = option(
        "Limits", ByteSize(64 << 10), "Longest JSON schema or grammar, as JSON.", default_text="64KiB", ge=64
    )
    max_schema_depth: int = option("Limits", 32, "Deepest nesting of a JSON schema.", ge=2, le=64)
    max_enum_values: int = option("Limits", 1000, "Most values of one `enum` or `choice`.", ge=1)
    max_regex_chars: int = option("Limits", 1000, "Longest regular expression.", ge=1)
    max_repeats: int = option(
        "Limits", 10000, "Largest count in a regular expression, and largest `maxLength`, `maxItems` and such.", ge=1
    )
    grammar_seconds: float = option(
        "Limits",
        10.0,
        "CPU time to compile a request's grammar, tried in a process of its own with `--grammar-memory`; what takes "
        "longer is refused.",
        gt=0,
        le=600,
    )
    grammar_memory: ByteSize = option(
        "Limits", ByteSize(1 << 30), "Memory to compile a request's grammar.", default_text="1GiB", ge=64 << 20
    )
    json_whitespace: JsonWhitespace = option(
        "Limits",
        "none",
        "Whitespace between the parts of JSON that a schema asks for; `any` lets a model write it until `max_tokens`.",
    )

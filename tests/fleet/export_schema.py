"""The columns of exported accounts, in Arrow's types."""

import pyarrow

INTEGER, TEXT, FLAG = pyarrow.int64(), pyarrow.string(), pyarrow.bool_()

SHARE = pyarrow.struct(
    [
        ("domain", TEXT),
        ("grade", TEXT),
        *[(name, INTEGER) for name in ["share_uj", "error_uj", "window_uj", "idle_uj", "process_uj", "unknown_ns"]],
    ]
)

ACCOUNT_SCHEMA = pyarrow.schema(
    [
        ("number", INTEGER),
        ("span", TEXT),
        ("name", TEXT),
        ("uid", INTEGER),
        ("state", TEXT),
        ("grade", TEXT),
        ("simulated", FLAG),
        ("at_least", FLAG),
        ("opened_unix_ns", INTEGER),
        ("closed_unix_ns", INTEGER),
        ("duration_ns", INTEGER),
        ("moved_ns", INTEGER),
        ("weight", pyarrow.float64()),
        *[
            (name, INTEGER)
            for name in ["peak_concurrency", "share_uj", "error_uj", "window_uj", "idle_uj", "process_uj", "mean_power_mw"]
        ],
        ("gen_ai.request.model", TEXT),
        ("gen_ai.response.model", TEXT),
        ("gen_ai.operation.name", TEXT),
        ("gen_ai.usage.input_tokens", TEXT),
        ("gen_ai.usage.output_tokens", TEXT),
        ("domains", pyarrow.list_(pyarrow.field("element", SHARE, nullable=False))),
    ]
)

# What other columns give exactly; CSV and JSONL have them too.
COMPUTED_COLUMNS = ["duration_ns", "mean_power_mw"]

PARQUET_SCHEMA = pyarrow.schema([field for field in ACCOUNT_SCHEMA if field.name not in COMPUTED_COLUMNS])

BALANCE_SCHEMA = pyarrow.schema(
    [
        ("life", TEXT),
        ("at_unix_ns", INTEGER),
        ("domain", TEXT),
        ("kind", TEXT),
        ("grade", TEXT),
        ("counted", FLAG),
        ("simulated", FLAG),
        ("measured_uj", INTEGER),
        ("attributed_uj", INTEGER),
        ("unattributed_uj", INTEGER),
    ]
)

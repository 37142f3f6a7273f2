-- The views that the queries read, on top of those that the engine's reader has made of the files (run.py):
--   exported_accounts   DIR/date=*/host=*/*.parquet, with `date` and `host` as text
--   exported_balance    DIR/_balance/date=*/host=*/*.parquet, likewise
--   ipw_rows            the last row of each query of the named `wattspan ipw` runs
--   user_classes        first_uid, last_uid, class
--   zones               host, zone
--   intensity_table     zone, begins_unix_s, ends_unix_s, price_micro_per_kwh, co2_mg_per_kwh
-- Energies are whole microjoules, times whole nanoseconds. An unknown value is NULL, never 0.

CREATE OR REPLACE TEMPORARY VIEW accounts AS
SELECT
  host, "date" AS day, number, span, uid, grade, at_least,
  opened_unix_ns, closed_unix_ns, closed_unix_ns - opened_unix_ns AS duration_ns, peak_concurrency,
  share_uj, window_uj, idle_uj,
  CASE WHEN share_uj IS NOT NULL THEN error_uj END AS error_uj,
  "gen_ai.request.model" AS model,
  -- A count of tokens is a text of the client: other texts than up to 15 digits are unknown.
  CASE
    WHEN LENGTH("gen_ai.usage.output_tokens") BETWEEN 1 AND 15
      AND TRANSLATE("gen_ai.usage.output_tokens", '0123456789', '') = ''
    THEN TRY_CAST("gen_ai.usage.output_tokens" AS BIGINT)
  END AS output_tokens
FROM exported_accounts;

CREATE OR REPLACE TEMPORARY VIEW balance AS
SELECT host, "date" AS day, life, domain, counted, measured_uj, attributed_uj, unattributed_uj
FROM exported_balance;

CREATE OR REPLACE TEMPORARY VIEW intensity AS
SELECT
  zone, begins_unix_s * 1000000000 AS begins_unix_ns, ends_unix_s * 1000000000 AS ends_unix_ns,
  price_micro_per_kwh, co2_mg_per_kwh
FROM intensity_table;

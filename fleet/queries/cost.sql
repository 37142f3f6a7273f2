-- Cost and CO2 by model and day, from prices and intensities that change with time. The energy of a span is spread evenly over
-- the time that it was open. Energy of times or zones that are not in the table is in unpriced_uj. Amounts are rounded down
-- for each host and interval, to a millionth of the currency and a milligram.
WITH spans AS (
  SELECT
    a.host, COALESCE(z.zone, 'default') AS zone, a.model, a.day, a.share_uj, a.opened_unix_ns,
    COALESCE(a.closed_unix_ns, a.opened_unix_ns) AS closed_unix_ns,
    -- The quarter of an hour; intervals begin and end with one, so most spans are summed before they are joined.
    a.opened_unix_ns - a.opened_unix_ns % 900000000000 AS slot_unix_ns
  FROM accounts a
  LEFT JOIN zones z ON a.host = z.host
  WHERE a.share_uj IS NOT NULL
),
slots AS (
  SELECT host, zone, model, day, slot_unix_ns, SUM(share_uj) AS share_uj
  FROM spans
  WHERE closed_unix_ns <= slot_unix_ns + 900000000000
  GROUP BY host, zone, model, day, slot_unix_ns
),
parts AS (
  SELECT s.host, s.model, s.day, i.zone, i.begins_unix_ns, i.price_micro_per_kwh, i.co2_mg_per_kwh, s.share_uj
  FROM slots s
  JOIN intensity i
    ON s.zone = i.zone AND s.slot_unix_ns >= i.begins_unix_ns AND s.slot_unix_ns < i.ends_unix_ns
  UNION ALL
  -- The energy up to the end of the interval, less that up to its begin: the parts of a span add up to it.
  SELECT
    s.host, s.model, s.day, i.zone, i.begins_unix_ns, i.price_micro_per_kwh, i.co2_mg_per_kwh,
    CASE
      WHEN i.ends_unix_ns >= s.closed_unix_ns THEN s.share_uj
      ELSE CAST(FLOOR(
        CAST(s.share_uj AS DOUBLE) * CAST(i.ends_unix_ns - s.opened_unix_ns AS DOUBLE)
        / CAST(s.closed_unix_ns - s.opened_unix_ns AS DOUBLE)) AS BIGINT)
    END
    - CASE
      WHEN i.begins_unix_ns <= s.opened_unix_ns THEN 0
      ELSE CAST(FLOOR(
        CAST(s.share_uj AS DOUBLE) * CAST(i.begins_unix_ns - s.opened_unix_ns AS DOUBLE)
        / CAST(s.closed_unix_ns - s.opened_unix_ns AS DOUBLE)) AS BIGINT)
    END
  FROM spans s
  JOIN intensity i
    ON s.zone = i.zone AND i.begins_unix_ns < s.closed_unix_ns AND i.ends_unix_ns > s.opened_unix_ns
  WHERE s.closed_unix_ns > s.slot_unix_ns + 900000000000
),
intervals AS (
  SELECT
    model, day, CAST(SUM(share_uj) AS BIGINT) AS priced_uj, MAX(price_micro_per_kwh) AS price_micro_per_kwh,
    MAX(co2_mg_per_kwh) AS co2_mg_per_kwh
  FROM parts
  GROUP BY host, model, day, zone, begins_unix_ns
),
amounts AS (
  SELECT model, day, 0 AS share_uj, priced_uj,
    CAST(FLOOR(CAST(priced_uj AS DOUBLE) * CAST(price_micro_per_kwh AS DOUBLE) / 3.6e12) AS BIGINT) AS cost_micro,
    CAST(FLOOR(CAST(priced_uj AS DOUBLE) * CAST(co2_mg_per_kwh AS DOUBLE) / 3.6e12) AS BIGINT) AS co2_mg
  FROM intervals
  UNION ALL
  SELECT model, day, CAST(SUM(share_uj) AS BIGINT), 0, 0, 0
  FROM spans
  GROUP BY model, day, host
)
SELECT
  model, day,
  CAST(SUM(share_uj) AS BIGINT) AS share_uj,
  CAST(SUM(share_uj) - SUM(priced_uj) AS BIGINT) AS unpriced_uj,
  CAST(SUM(cost_micro) AS BIGINT) AS cost_micro,
  CAST(SUM(co2_mg) AS BIGINT) AS co2_mg
FROM amounts
GROUP BY model, day
ORDER BY 1 NULLS FIRST, 2

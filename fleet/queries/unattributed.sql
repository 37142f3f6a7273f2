-- By host and day: the energy of the counted domains, the part that belongs to no span, and the idle part of the accounts.
-- The balance counts from the start of each daemon (a life) and is exported once a day and life, with the last values; a
-- difference of two days is the energy between their last exports. accounts_uj belongs to the day of the closing, so it differs
-- from attributed_uj by spans that are open at midnight.
WITH steps AS (
  SELECT
    host, day,
    measured_uj - COALESCE(LAG(measured_uj) OVER (PARTITION BY host, life, domain ORDER BY day), 0) AS measured_uj,
    attributed_uj - COALESCE(LAG(attributed_uj) OVER (PARTITION BY host, life, domain ORDER BY day), 0) AS attributed_uj,
    unattributed_uj - COALESCE(LAG(unattributed_uj) OVER (PARTITION BY host, life, domain ORDER BY day), 0)
      AS unattributed_uj
  FROM balance
  WHERE counted
),
machine_days AS (
  SELECT
    host, day, CAST(SUM(measured_uj) AS BIGINT) AS measured_uj, CAST(SUM(attributed_uj) AS BIGINT) AS attributed_uj,
    CAST(SUM(unattributed_uj) AS BIGINT) AS unattributed_uj
  FROM steps
  GROUP BY host, day
),
account_days AS (
  SELECT
    host, day, CAST(SUM(share_uj) AS BIGINT) AS accounts_uj, CAST(SUM(idle_uj) AS BIGINT) AS idle_uj,
    CAST(SUM(CASE WHEN idle_uj IS NOT NULL THEN share_uj END) AS BIGINT) AS with_idle_uj
  FROM accounts
  GROUP BY host, day
)
SELECT
  COALESCE(m.host, a.host) AS host, COALESCE(m.day, a.day) AS day,
  m.measured_uj, m.attributed_uj, m.unattributed_uj,
  CAST(m.unattributed_uj AS DOUBLE) / CAST(NULLIF(m.measured_uj, 0) AS DOUBLE) AS unattributed_part,
  a.accounts_uj, a.idle_uj,
  CAST(a.idle_uj AS DOUBLE) / CAST(NULLIF(a.with_idle_uj, 0) AS DOUBLE) AS idle_part
FROM machine_days m
FULL OUTER JOIN account_days a ON m.host = a.host AND m.day = a.day
ORDER BY 1, 2

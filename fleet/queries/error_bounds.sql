-- Energy of the whole fleet by model and grade, with bounds that add: the true energy of the bounded accounts is from low_uj
-- to high_uj. Energy of accounts without a bound stands apart. Sums over hosts and days have 38 digits: a fleet exceeds 64 bits.
WITH by_host AS (
  SELECT
    model, grade, host, day,
    COUNT(*) AS accounts, COUNT(error_uj) AS bounded,
    COUNT(*) - COUNT(share_uj) AS unmetered,
    SUM(CASE WHEN error_uj IS NOT NULL THEN share_uj ELSE 0 END) AS bounded_uj,
    SUM(CASE WHEN error_uj IS NOT NULL THEN error_uj ELSE 0 END) AS error_uj,
    SUM(CASE WHEN error_uj IS NULL AND share_uj IS NOT NULL THEN share_uj ELSE 0 END) AS unbounded_uj
  FROM accounts
  GROUP BY model, grade, host, day
)
SELECT
  model, grade,
  CAST(SUM(accounts) AS BIGINT) AS accounts,
  CAST(SUM(bounded) AS BIGINT) AS bounded,
  CAST(SUM(unmetered) AS BIGINT) AS unmetered,
  CAST(SUM(CAST(bounded_uj AS DECIMAL(20, 0))) AS DECIMAL(38, 0)) AS bounded_uj,
  CAST(SUM(CAST(error_uj AS DECIMAL(20, 0))) AS DECIMAL(38, 0)) AS error_uj,
  CAST(SUM(CAST(bounded_uj - error_uj AS DECIMAL(20, 0))) AS DECIMAL(38, 0)) AS low_uj,
  CAST(SUM(CAST(bounded_uj + error_uj AS DECIMAL(20, 0))) AS DECIMAL(38, 0)) AS high_uj,
  CAST(SUM(CAST(unbounded_uj AS DECIMAL(20, 0))) AS DECIMAL(38, 0)) AS unbounded_uj
FROM by_host
GROUP BY model, grade
ORDER BY 1 NULLS FIRST, 2 NULLS FIRST

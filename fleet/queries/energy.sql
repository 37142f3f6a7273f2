-- Energy by model, host, day (UTC, of the closing) and user class. Bounds add: the true sum is within share_uj ± error_uj.
-- error_uj is NULL where an account with energy has no bound; accounts - metered have no energy.
WITH by_user AS (
  SELECT
    model, host, day, uid,
    COUNT(*) AS accounts, COUNT(share_uj) AS metered, COUNT(error_uj) AS bounded,
    SUM(share_uj) AS share_uj, SUM(error_uj) AS error_uj, SUM(idle_uj) AS idle_uj, SUM(output_tokens) AS output_tokens
  FROM accounts
  GROUP BY model, host, day, uid
)
SELECT
  u.model, u.host, u.day, COALESCE(c.class, 'unlisted') AS user_class,
  CAST(SUM(u.accounts) AS BIGINT) AS accounts,
  CAST(SUM(u.metered) AS BIGINT) AS metered,
  CAST(SUM(u.share_uj) AS BIGINT) AS share_uj,
  CASE WHEN SUM(u.bounded) = SUM(u.metered) THEN CAST(SUM(u.error_uj) AS BIGINT) END AS error_uj,
  CAST(SUM(u.idle_uj) AS BIGINT) AS idle_uj,
  CAST(SUM(u.output_tokens) AS BIGINT) AS output_tokens
FROM by_user u
LEFT JOIN user_classes c ON u.uid >= c.first_uid AND u.uid <= c.last_uid
GROUP BY u.model, u.host, u.day, COALESCE(c.class, 'unlisted')
ORDER BY 1 NULLS FIRST, 2, 3, 4

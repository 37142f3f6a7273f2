-- Histogram of the energy per output token by model: requests and their energy from from_uj (included) to the next from_uj,
-- in steps of 1, 2, 5, 10 from 1 mJ to 100 J. The first step begins at 0, the last one has no end.
WITH steps AS (
  SELECT
    model, share_uj,
    CASE
      WHEN share_uj >= 100000000 * output_tokens THEN 100000000
      WHEN share_uj >= 50000000 * output_tokens THEN 50000000
      WHEN share_uj >= 20000000 * output_tokens THEN 20000000
      WHEN share_uj >= 10000000 * output_tokens THEN 10000000
      WHEN share_uj >= 5000000 * output_tokens THEN 5000000
      WHEN share_uj >= 2000000 * output_tokens THEN 2000000
      WHEN share_uj >= 1000000 * output_tokens THEN 1000000
      WHEN share_uj >= 500000 * output_tokens THEN 500000
      WHEN share_uj >= 200000 * output_tokens THEN 200000
      WHEN share_uj >= 100000 * output_tokens THEN 100000
      WHEN share_uj >= 50000 * output_tokens THEN 50000
      WHEN share_uj >= 20000 * output_tokens THEN 20000
      WHEN share_uj >= 10000 * output_tokens THEN 10000
      WHEN share_uj >= 5000 * output_tokens THEN 5000
      WHEN share_uj >= 2000 * output_tokens THEN 2000
      WHEN share_uj >= 1000 * output_tokens THEN 1000
      ELSE 0
    END AS from_uj
  FROM accounts
  -- More tokens than any model writes in one request would exceed 64 bits above.
  WHERE share_uj IS NOT NULL AND output_tokens > 0 AND output_tokens < 10000000000
)
SELECT
  model, CAST(from_uj AS BIGINT) AS from_uj, COUNT(*) AS requests,
  CAST(SUM(CAST(share_uj AS DECIMAL(18, 0))) AS DECIMAL(38, 0)) AS share_uj
FROM steps
GROUP BY 1, 2
ORDER BY 1 NULLS FIRST, 2

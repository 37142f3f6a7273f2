-- Distribution of the energy per output token over requests, by model, in microjoules rounded down. pN is the lowest value
-- that at least N % of the requests do not exceed. Only requests with energy and at least one output token.
WITH request_counts AS (
  SELECT
    model,
    CAST(FLOOR(CAST(share_uj AS DOUBLE) / CAST(output_tokens AS DOUBLE)) AS BIGINT) AS uj_per_token,
    COUNT(*) AS requests
  FROM accounts
  WHERE share_uj IS NOT NULL AND output_tokens > 0
  GROUP BY 1, 2
),
ranked AS (
  SELECT
    model, uj_per_token,
    SUM(requests) OVER (
      PARTITION BY model ORDER BY uj_per_token ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
    ) AS up_to,
    SUM(requests) OVER (PARTITION BY model) AS requests
  FROM request_counts
)
SELECT
  model,
  CAST(MAX(requests) AS BIGINT) AS requests,
  MIN(uj_per_token) AS min_uj,
  MIN(CASE WHEN up_to * 100 >= requests * 5 THEN uj_per_token END) AS p5_uj,
  MIN(CASE WHEN up_to * 100 >= requests * 50 THEN uj_per_token END) AS p50_uj,
  MIN(CASE WHEN up_to * 100 >= requests * 95 THEN uj_per_token END) AS p95_uj,
  MIN(CASE WHEN up_to * 100 >= requests * 99 THEN uj_per_token END) AS p99_uj,
  MAX(uj_per_token) AS max_uj
FROM ranked
GROUP BY model
ORDER BY 1 NULLS FIRST

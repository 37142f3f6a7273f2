-- Hosts whose energy per output token differs from that of the other hosts with the same model. A host disagrees if it is more
-- than 10 % from the median of the hosts, further than three times the median of these distances, and further than the error
-- bounds of both allow. Fewer than three hosts have no verdict. Different concurrency is a usual cause: it stands beside.
WITH sums AS (
  SELECT
    model, host, COUNT(*) AS requests, CAST(SUM(share_uj) AS BIGINT) AS share_uj,
    CAST(SUM(output_tokens) AS BIGINT) AS output_tokens,
    CASE WHEN COUNT(error_uj) = COUNT(*) THEN CAST(SUM(error_uj) AS BIGINT) END AS error_uj,
    MAX(peak_concurrency) AS peak_concurrency
  FROM accounts
  WHERE share_uj IS NOT NULL AND output_tokens > 0 AND model IS NOT NULL
  GROUP BY model, host
),
rates AS (
  SELECT
    model, host, requests, peak_concurrency,
    CAST(FLOOR(CAST(share_uj AS DOUBLE) / CAST(output_tokens AS DOUBLE)) AS BIGINT) AS uj_per_token,
    CAST(CEIL(CAST(error_uj AS DOUBLE) / CAST(output_tokens AS DOUBLE)) AS BIGINT) AS error_uj_per_token
  FROM sums
),
ordered AS (
  SELECT
    rates.*,
    ROW_NUMBER() OVER (PARTITION BY model ORDER BY uj_per_token, host) AS place,
    COUNT(*) OVER (PARTITION BY model) AS hosts
  FROM rates
),
medians AS (
  SELECT model, uj_per_token AS median_uj, error_uj_per_token AS median_error_uj
  FROM ordered
  WHERE 2 * place = hosts OR 2 * place = hosts + 1
),
distances AS (
  SELECT
    o.model, o.host, o.requests, o.peak_concurrency, o.uj_per_token, o.error_uj_per_token, o.hosts,
    m.median_uj, m.median_error_uj, ABS(o.uj_per_token - m.median_uj) AS distance_uj,
    ROW_NUMBER() OVER (PARTITION BY o.model ORDER BY ABS(o.uj_per_token - m.median_uj), o.host) AS place
  FROM ordered o
  JOIN medians m ON o.model = m.model
),
usual AS (
  SELECT model, distance_uj AS usual_distance_uj
  FROM distances
  WHERE 2 * place = hosts OR 2 * place = hosts + 1
)
SELECT
  d.model, d.host, d.requests, d.peak_concurrency, d.uj_per_token, d.error_uj_per_token, d.median_uj,
  u.usual_distance_uj,
  CASE
    WHEN d.hosts < 3 THEN 'too few hosts'
    WHEN d.distance_uj * 10 <= d.median_uj OR d.distance_uj <= 3 * u.usual_distance_uj THEN 'agrees'
    WHEN d.error_uj_per_token IS NULL OR d.median_error_uj IS NULL THEN 'disagrees, without error bounds'
    WHEN d.distance_uj <= d.error_uj_per_token + d.median_error_uj THEN 'within the error bounds'
    ELSE 'disagrees'
  END AS verdict
FROM distances d
JOIN usual u ON d.model = u.model
ORDER BY 1, 2

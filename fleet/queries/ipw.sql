-- Intelligence per watt by run, host and model, as docs/ipw.md defines it: accuracy over the mean power of the machine
-- (window_uj / duration) while a question was open. Scores come from the rows of `wattspan ipw` runs, joined by span. A
-- question may have several spans (retries, a resumed run, several calls of an imported sample), and the account is that of
-- the last one: where its row has their energy, that counts. The scope is the host's counted domains, idle included.
-- attributed_power_uw (share_uj / duration) is another quantity, and no denominator here.
-- Refused: models overlapped on the host, less than 95 % of the questions covered, or a span with several accounts.
WITH run_rows AS (
  -- A question that was not delivered was not asked: it lowers the coverage and counts in no figure.
  SELECT run, COUNT(*) AS questions FROM ipw_rows GROUP BY run
),
run_hosts AS (
  SELECT a.host, MIN(a.opened_unix_ns) AS first_unix_ns, MAX(a.closed_unix_ns) AS last_unix_ns
  FROM accounts a
  JOIN ipw_rows r ON a.span = r.span
  GROUP BY a.host
),
-- Spans of any model on these hosts at that time. Chains of spans that overlap are one island; an island with two models has
-- spans of each of them that overlap with another model.
during AS (
  SELECT
    a.host, a.model, a.number, a.opened_unix_ns, a.closed_unix_ns,
    MAX(a.closed_unix_ns) OVER (
      PARTITION BY a.host ORDER BY a.opened_unix_ns, a.closed_unix_ns, a.number, a.span
      ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    ) AS earlier_closed_unix_ns,
    a.span
  FROM accounts a
  JOIN run_hosts h ON a.host = h.host AND a.opened_unix_ns < h.last_unix_ns AND a.closed_unix_ns > h.first_unix_ns
  WHERE a.model IS NOT NULL
),
islands AS (
  SELECT
    host, model,
    SUM(CASE WHEN earlier_closed_unix_ns > opened_unix_ns THEN 0 ELSE 1 END) OVER (
      PARTITION BY host ORDER BY opened_unix_ns, closed_unix_ns, number, span
      ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
    ) AS island
  FROM during
),
mixed AS (
  SELECT host, island FROM islands GROUP BY host, island HAVING MIN(model) <> MAX(model)
),
overlapped AS (
  SELECT DISTINCT i.host, i.model
  FROM islands i
  JOIN mixed m ON i.host = m.host AND i.island = m.island
),
questions AS (
  SELECT
    r.run, a.host, a.model, r.score_millionths, a.peak_concurrency,
    COUNT(*) OVER (PARTITION BY r.run, r.question) AS places,
    CASE WHEN r.retries > 0 OR r.share_uj IS NOT NULL THEN r.share_uj ELSE a.share_uj END AS share_uj,
    CASE WHEN r.retries > 0 OR r.share_uj IS NOT NULL THEN r.window_uj ELSE a.window_uj END AS window_uj,
    CASE WHEN r.retries > 0 OR r.share_uj IS NOT NULL THEN r.span_ns ELSE a.duration_ns END AS duration_ns
  FROM ipw_rows r
  JOIN accounts a ON r.span = a.span
  WHERE r.score_millionths IS NOT NULL
),
covered AS (
  SELECT
    run, host, model, score_millionths, peak_concurrency, places, share_uj,
    CAST(FLOOR(CAST(window_uj AS DOUBLE) * 1e9 / CAST(duration_ns AS DOUBLE)) AS BIGINT) AS power_uw,
    CAST(FLOOR(CAST(share_uj AS DOUBLE) * 1e9 / CAST(duration_ns AS DOUBLE)) AS BIGINT) AS attributed_power_uw
  FROM questions
  WHERE share_uj IS NOT NULL AND window_uj IS NOT NULL AND duration_ns > 0
),
sums AS (
  SELECT
    run, host, model, COUNT(*) AS covered, MAX(peak_concurrency) AS peak_concurrency, MAX(places) AS places,
    CAST(SUM(score_millionths) AS BIGINT) AS score_millionths, CAST(SUM(power_uw) AS BIGINT) AS power_uw,
    CAST(SUM(attributed_power_uw) AS BIGINT) AS attributed_power_uw, CAST(SUM(share_uj) AS BIGINT) AS share_uj
  FROM covered
  GROUP BY run, host, model
),
judged AS (
  SELECT
    s.run, s.host, s.model, n.questions, s.covered, s.peak_concurrency, s.score_millionths, s.power_uw,
    s.attributed_power_uw, s.share_uj,
    CASE
      WHEN s.places > 1 THEN 'a span has several accounts'
      WHEN o.host IS NOT NULL THEN 'models overlapped on the host'
      WHEN SUM(s.covered) OVER (PARTITION BY s.run) * 100 < n.questions * 95 THEN 'coverage below 95 %'
    END AS refused
  FROM sums s
  JOIN run_rows n ON s.run = n.run
  LEFT JOIN overlapped o ON s.host = o.host AND s.model = o.model
)
SELECT
  run, host, model, questions, covered, peak_concurrency,
  CAST(score_millionths AS DOUBLE) / 1e6 / CAST(covered AS DOUBLE) AS accuracy,
  CAST(FLOOR(CAST(power_uw AS DOUBLE) / CAST(covered AS DOUBLE)) AS BIGINT) AS power_uw,
  CAST(FLOOR(CAST(attributed_power_uw AS DOUBLE) / CAST(covered AS DOUBLE)) AS BIGINT) AS attributed_power_uw,
  CAST(FLOOR(CAST(share_uj AS DOUBLE) / CAST(covered AS DOUBLE)) AS BIGINT) AS energy_uj,
  CASE WHEN refused IS NULL THEN CAST(score_millionths AS DOUBLE) / CAST(NULLIF(power_uw, 0) AS DOUBLE) END AS ipw_per_watt,
  CASE WHEN refused IS NULL THEN CAST(score_millionths AS DOUBLE) / CAST(NULLIF(share_uj, 0) AS DOUBLE) END AS ipj_per_joule,
  refused
FROM judged
ORDER BY 1, 2, 3 NULLS FIRST

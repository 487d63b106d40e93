-- Entropy, KL and agreement with the final prediction by layer and tap: means, and 10, 50 and 90 % quantiles.
-- tap = all: one tap, or all
-- layers = all: all, a list such as 0,5-10, a layer such as -1, or a slice such as 20:
-- positions = all: all, last, last:N, a position, or A:B
-- by = none: metadata key to split by
WITH counted AS (  -- entropies are rounded, so that equal ones are many: counting them is faster than sorting places
    SELECT
        split, tap, layer, entropy::DOUBLE AS entropy, count(*) AS places, count(*) FILTER (final_rank = 1) AS agreeing,
        count(final_rank) AS known
    FROM places
    GROUP BY ALL
),
ranked AS (
    SELECT *, sum(places) OVER (PARTITION BY split, tap, layer ORDER BY entropy) AS upto, sum(places) OVER (PARTITION BY split, tap, layer) AS total
    FROM counted
),
means AS (
    SELECT
        split, tap, layer, sum(places)::BIGINT AS places, sum(agreeing) / nullif(sum(known), 0) AS agreement,
        sum(entropy * places) / sum(places) AS entropy
    FROM counted
    GROUP BY ALL
),
bands AS (  -- of N places in order, the one at share * (N - 1), between two neighbours by its fraction
    SELECT split, tap, layer, share, low + (high - low) * fraction AS entropy
    FROM (
        SELECT
            split, tap, layer, share, min(entropy) FILTER (upto > floor(index)) AS low, min(entropy) FILTER (upto > ceil(index)) AS high,
            any_value(index - floor(index)) AS fraction
        FROM (SELECT *, share * (total - 1) AS index FROM ranked, (SELECT unnest([0.1, 0.5, 0.9]::DOUBLE[]) AS share))
        GROUP BY ALL
    )
),
entropies AS (
    SELECT
        split, tap, layer, any_value(entropy) FILTER (share < 0.5) AS entropy_10, any_value(entropy) FILTER (share = 0.5) AS entropy_50,
        any_value(entropy) FILTER (share > 0.5) AS entropy_90
    FROM bands
    GROUP BY ALL
),
kls AS (
    SELECT split, tap, layer, avg(kl) AS kl, quantile_cont(kl::DOUBLE, [0.1, 0.5, 0.9]) AS quantiles
    FROM places
    WHERE kl IS NOT NULL
    GROUP BY ALL
)
SELECT
    means.split, means.tap, means.layer, places, agreement, entropy, entropy_10, entropy_50, entropy_90, kl, quantiles[1] AS kl_10, quantiles[2] AS kl_50,
    quantiles[3] AS kl_90
FROM means
JOIN entropies
    ON (means.tap, means.layer) = (entropies.tap, entropies.layer) AND means.split IS NOT DISTINCT FROM entropies.split
LEFT JOIN kls ON (means.tap, means.layer) = (kls.tap, kls.layer) AND means.split IS NOT DISTINCT FROM kls.split
ORDER BY means.split, means.layer, tap_order(means.tap)

-- What each tap and layer adds to the logit of a token, or to its lead over another: mean, its 95 % interval, share above 0.
-- to = none: a tracked token as --track named it; the model's own best one where none is named
-- minus = none: a tracked token whose attribution is taken off
-- tap = all: which tap, or all
-- layers = all: which layers, as N or A:B
-- positions = all: which positions: all, last, last:N or A:B
-- by = none: metadata key to split by
-- needs: attribution
WITH terms AS (
    SELECT
        split, tap, layer, attribution_error,
        CASE WHEN $to::INTEGER IS NULL THEN best_attribution
            ELSE attribution[$to::INTEGER] - CASE WHEN $minus::INTEGER IS NULL THEN 0 ELSE attribution[$minus::INTEGER] END
        END::DOUBLE AS term
    FROM places
)
SELECT
    split, tap, layer, count(term) AS places, avg(term) AS attribution,
    avg(term) - 1.96 * stddev_samp(term) / sqrt(count(term)) AS low, avg(term) + 1.96 * stddev_samp(term) / sqrt(count(term)) AS high,
    avg((term > 0)::INTEGER) AS positive, max(attribution_error) AS error
FROM terms
GROUP BY split, tap, layer
ORDER BY split, layer, tap_order(tap)

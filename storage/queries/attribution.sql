-- What each tap, layer and head adds to a token's logit, or to its lead over another: mean, 95 % interval, share above 0.
-- to = none: tracked token, written as for --track; without it, the model's final prediction
-- minus = none: tracked token whose attribution is subtracted
-- tap = all: one tap, or all
-- layers = all: all, a list such as 0,5-10, a layer such as -1, or a slice such as 20:
-- positions = all: all, last, last:N, a position, or A:B
-- by = none: metadata key to split by
-- needs: attribution
WITH terms AS (
    SELECT
        split, tap, layer, attribution_error,
        CASE WHEN $to::INTEGER IS NULL THEN best_attribution
            ELSE attribution[$to::INTEGER] - CASE WHEN $minus::INTEGER IS NULL THEN 0 ELSE attribution[$minus::INTEGER] END
        END::DOUBLE AS term
    FROM places
),
summed AS (
    SELECT
        split, tap, layer, count(term) AS places, avg(term) AS attribution, stddev_samp(term) / sqrt(count(term)) AS deviation,
        avg((term > 0)::INTEGER) AS positive, max(attribution_error) AS error
    FROM terms
    GROUP BY split, tap, layer
),
widths AS (
    -- Student's t, two-sided: by degrees of freedom up to 30, and beyond to four digits
    SELECT
        *,
        deviation * coalesce(
            [
                12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281, 2.2010, 2.1788, 2.1604, 2.1448, 2.1314,
                2.1199, 2.1098, 2.1009, 2.0930, 2.0860, 2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423
            ][places - 1],
            1.96 + 2.37 / (places - 2.2)
        ) AS half
    FROM summed
)
SELECT split, tap, layer, places, attribution, attribution - half AS low, attribution + half AS high, positive, error
FROM widths
ORDER BY split, layer, tap_order(tap)

-- Failed prompts by kind.
-- by = none: metadata key to split by
WITH ended AS (SELECT metadata_value(metadata, $by) AS split, failure AS kind, prompt, id, message FROM prompt_rows),
totals AS (SELECT split, count(*) AS total FROM ended GROUP BY ALL)
SELECT
    ended.split, kind, count(*) AS prompts, prompts / any_value(total) AS share, arg_min(id, prompt) AS example,
    arg_min(message, prompt) AS message
FROM ended
JOIN totals ON totals.split IS NOT DISTINCT FROM ended.split
WHERE kind IS NOT NULL
GROUP BY ALL
ORDER BY ended.split, prompts DESC, kind

-- Places where one of the tokens is among the best.
-- token: the tokens looked for, by text, as id:N, or as field:NAME as --track named it
-- tap = resid_post: where they are looked for, or all
-- layers = all: which layers: all, 0,5-10, -1 or a slice such as 20:
-- positions = all: which positions: all, last, last:N, a position or A:B
-- rank = 1: among how many of the best
-- by = none: metadata key that is shown
-- limit = none: at most so many rows
-- needs: rank
SELECT asked.split, id, position, input.token AS input, tap, layer, rank, named.token, logprob
FROM (
    SELECT prompt, position, tap, layer, token_id, list_position(ids, token_id) AS rank, logprobs[rank] AS logprob
    FROM (SELECT prompt, position, tap, layer, ids, logprobs, unnest(wanted) AS token_id FROM places)
    WHERE list_position(ids, token_id) BETWEEN 1 AND $rank
) AS found
JOIN asked USING (prompt)
LEFT JOIN tokens AS input ON input.token_id = token_ids[position + 1]
LEFT JOIN tokens AS named ON named.token_id = found.token_id
ORDER BY prompt, position, layer, tap_order(tap), rank
LIMIT $limit

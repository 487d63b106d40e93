-- Places that decide last: the latest changes of the best token, and the tokens before and after.
-- positions = all: which positions: all, last, last:N, a position or A:B
-- by = none: metadata key that is shown
-- limit = 20: at most so many rows
-- needs: final
SELECT split, id, position, input.token AS input, stable AS layer, before.token AS before, final.token AS after, final_logprob AS logprob
FROM decisions
JOIN asked USING (prompt)
LEFT JOIN tokens AS input ON input.token_id = token_ids[position + 1]
LEFT JOIN tokens AS before ON before.token_id = before_id
LEFT JOIN tokens AS final ON final.token_id = final_id
WHERE position BETWEEN lowest AND highest AND before_id IS NOT NULL
ORDER BY stable DESC, final_logprob DESC, prompt, position
LIMIT $limit

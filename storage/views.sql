-- The views that queries are written against (docs/QUERIES.md), over the tables of the runs, lens and prompt_rows, and
-- tokens, in which runs of one vocabulary share it.

CREATE VIEW prompts AS
SELECT run, prompt, id, text, len(token_ids) AS tokens, truncated_from, metadata::JSON AS metadata, failure
FROM prompt_rows;

CREATE VIEW failures AS
SELECT run, prompt, id, failure AS kind, message, metadata::JSON AS metadata
FROM prompt_rows
WHERE failure IS NOT NULL;

CREATE VIEW positions AS
SELECT run, prompt, position, place.token_id, here.token, next_id, following.token AS next
FROM (
    SELECT
        run, vocabulary, prompt, unnest(positions) AS position, token_ids[position + 1] AS token_id, token_ids[position + 2] AS next_id
    FROM prompt_rows
    WHERE failure IS NULL
) AS place
LEFT JOIN tokens AS here USING (vocabulary, token_id)
LEFT JOIN tokens AS following ON following.vocabulary = place.vocabulary AND following.token_id = next_id;

CREATE VIEW metrics AS
SELECT
    run, prompt, position, tap, layer, ids[1] AS top_id, logprobs[1] AS top_logprob, nullif(final_rank, 0) AS final_rank, entropy, kl,
    next_logprob, next_rank, best_logprob, best_rank, next_attribution, best_attribution, attribution_error
FROM lens;

CREATE VIEW topk AS
SELECT run, prompt, position, tap, layer, rank, token_id, token, logprob
FROM (
    SELECT
        run, vocabulary, prompt, position, tap, layer, unnest(range(1, len(ids) + 1))::USMALLINT AS rank, unnest(ids) AS token_id,
        unnest(logprobs) AS logprob
    FROM lens
)
LEFT JOIN tokens USING (vocabulary, token_id);

CREATE VIEW tracked AS
SELECT run, prompt, position, tap, layer, number, token_id, token, logprob, rank, attribution
FROM (
    SELECT
        run, vocabulary, prompt, position, tap, layer, unnest(range(1, len(tracked) + 1)) AS number, unnest(tracked) AS token_id, unnest(tracked_logprob) AS logprob,
        unnest(tracked_rank) AS rank, unnest(attribution) AS attribution
    FROM lens
    JOIN prompt_rows USING (run, vocabulary, prompt)
)
LEFT JOIN tokens USING (vocabulary, token_id);

-- Final is the best token of the last layer of resid_post (docs/QUERIES.md).
CREATE VIEW decisions AS
SELECT run, prompt, position, final_id, final_logprob, before_id, first, coalesce(next, first) AS stable
FROM (
    SELECT
        run, prompt, position, arg_max(ids[1], layer) AS final_id, arg_max(logprobs[1], layer) AS final_logprob,
        arg_max(ids[1], layer) FILTER (final_rank <> 1) AS before_id,
        min(layer) FILTER (final_rank = 1) AS first, max(layer) FILTER (final_rank <> 1) AS before
    FROM lens
    WHERE tap = 'resid_post'
    GROUP BY ALL
)
LEFT JOIN (
    SELECT run, layer AS before, lead(layer) OVER (PARTITION BY run ORDER BY layer) AS next
    FROM (SELECT DISTINCT run, layer FROM lens WHERE tap = 'resid_post')
) USING (run, before);

-- Taps in the order in which a block computes them, then its heads.
CREATE MACRO tap_order(tap) AS coalesce(
    list_position(['resid_pre', 'attn_out', 'resid_mid', 'mlp_out', 'resid_post'], tap), 6 + try_cast(substr(tap, 6) AS INTEGER)
);

-- The value of a metadata key of any name: as text, null where there is none or JSON's null; and as JSON.
CREATE MACRO json_pointer(key) AS '/' || replace(replace(key, '~', '~0'), '/', '~1');
CREATE MACRO metadata_value(metadata, key) AS json_extract_string(metadata, json_pointer(key));
-- The logprob of any of several tokens, also where each of them is too small a number by itself
CREATE MACRO summed(logprobs) AS list_max(logprobs) + ln(list_sum([exp(one - list_max(logprobs)) FOR one IN logprobs]));
CREATE MACRO metadata_json(metadata, key) AS json_extract(metadata, json_pointer(key))::VARCHAR;

-- Prompts of one id in two runs, and how many first tokens they share: all of the shorter one's, or none. Where both were generated the model goes
-- ways of its own from some token on, and what comes before is shared if it is at least the prompt, which ends where the first step is.
CREATE MACRO matched(run_one, run_other, generated) AS TABLE
SELECT
    one.prompt, other.prompt AS other_prompt, one.positions, other.positions AS other_positions,
    CASE WHEN alike = shorter OR alike > greatest(one.positions[1], other.positions[1]) THEN alike ELSE 0 END AS shared
FROM (SELECT * FROM prompt_rows WHERE run = run_one AND failure IS NULL) AS one
JOIN (SELECT * FROM prompt_rows WHERE run = run_other AND failure IS NULL) AS other USING (id),
LATERAL (SELECT least(len(one.token_ids), len(other.token_ids)) AS shorter),
LATERAL (SELECT one.token_ids[1:shorter] AS mine, other.token_ids[1:shorter] AS theirs),
LATERAL (
    SELECT CASE
        WHEN mine = theirs THEN shorter
        WHEN generated THEN list_position(list_transform(list_zip(mine, theirs), lambda pair: pair[1] <> pair[2]), true) - 1
        ELSE 0
    END AS alike
);

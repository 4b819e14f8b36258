-- Renews a node's lease.
--
-- KEYS[1]  base of the shard's keys
-- ARGV[1]  node
-- ARGV[2]  milliseconds of the lease
-- ARGV[3]  term (BASE:term in `scripts.py`) of the node's ledger; 0: no ledger; -1 if the node must not become the consumer
-- ARGV[4]  1 if the node has just subscribed to its topics
-- ARGV[5]  `least` of `nodes_not_here`, or '' if the script must not count the missing nodes
-- ARGV[6]  run id of the server and the node's generation (BASE:gen in `scripts.py`), or '' if the node has no generation
--
-- Returns the epoch, the milliseconds until the end of the recovery, the term of the consumer, the dead nodes, 1 if there are
-- deferred leaves to publish, the number of missing nodes, and the other living nodes. The term is 0 if this node is not the
-- consumer, and negative if another node was the consumer before.
-- If only BASE:gen was lost, stores the node's generation again, before a new node makes another generation. If the server has
-- another generation for the same run, returns an error, so that the node registers again and uses the server's generation.
-- During the recovery, the previous consumer remains the consumer, because only the node of this consumer has the ledger.
local node, lease, ledger, just_subscribed, least = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4] == '1', ARGV[5]
if not has_lease(node) then return redis.error_reply('NOLEASE no lease') end
redis.call('PEXPIRE', base .. ':lease:' .. node, lease)
if ARGV[6] ~= '' then
  local generation = redis.call('GET', base .. ':gen')
  if not generation then
    redis.call('SET', base .. ':gen', ARGV[6])
  elseif generation ~= ARGV[6] and string.match(generation, '^%w+') == string.match(ARGV[6], '^%w+') then
    return redis.error_reply('NOLEASE other generation')
  end
end
if just_subscribed then redis.call('SET', base .. ':lease:' .. node, 'there', 'PX', lease) end
local dead, alive = {}, {}
for _, other in ipairs(redis.call('SMEMBERS', base .. ':nodes')) do
  if not has_lease(other) then
    dead[#dead + 1] = other
  elseif other ~= node then
    alive[#alive + 1] = other
    if just_subscribed then redis.call(PUBLISH, base .. ':t:/' .. other, '\4' .. node) end
  end
end
local left = redis.call('PTTL', base .. ':recovering')
local reads = 0
if ledger >= 0 then
  local reader = redis.call('GET', base .. ':reader')
  local term, last = string.match(redis.call('GET', base .. ':term') or '0 ', '^(%d+) (.*)$')
  local stands = last == node or ledger > tonumber(term)
  if reader == node or ledger > tonumber(term) or (not reader and (left <= 0 or (stands and ledger > 0))) then
    redis.call('SET', base .. ':reader', node, 'PX', lease)
    reads = math.max(ledger, term) + 1
    redis.call('SET', base .. ':term', reads .. ' ' .. node)
    if not stands then reads = -reads end
  end
end
local deferred = left <= 0 and redis.call('EXISTS', base .. ':gone:order') or 0
local not_here = least == '' and 0 or nodes_not_here(node, tonumber(least))
return {redis.call('GET', base .. ':epoch'), left, reads, dead, deferred, not_here, alive}

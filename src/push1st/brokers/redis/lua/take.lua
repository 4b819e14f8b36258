-- Removes held-back leaving edges, and returns them to the last node of the cluster, which saves them when it stops.
--
-- KEYS[1]  base of the shard's keys
-- ARGV[1]  node
-- ARGV[2]  maximum number of edges that one call removes
--
-- Returns 1 if there are more edges, else 0. Also returns the field and the value of each removed edge.
local node, most = ARGV[1], ARGV[2]
if redis.call('GET', base .. ':reader') ~= node then return {0, {}} end
allow_when_full()
local taken = {}
for _, one in ipairs(redis.call('LPOP', base .. ':held:order', most) or {}) do
  local left, field = string.match(one, '^(%d+) (.*)$')
  local held = redis.call('HGET', base .. ':held', field)
  if held and string.match(held, '^%Z*') == left then
    redis.call('HDEL', base .. ':held', field)
    taken[#taken + 1] = field
    taken[#taken + 1] = held
  end
end
return {redis.call('EXISTS', base .. ':held:order'), taken}

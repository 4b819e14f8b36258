-- Renews the lease of the consumer, and removes the delivered hook events. Also releases the leaving edges that were
-- held back long enough, but not during a recovery (BASE:recovering in `scripts.py`).
--
-- KEYS[1]  base of the shard's keys
-- ARGV[1]  node
-- ARGV[2]  milliseconds of the lease
-- ARGV[3]  id of the newest delivered hook event
-- ARGV[4]  milliseconds for which leaving edges are held back
-- ARGV[5]  maximum number of leaving edges that one call releases
--
-- Returns 1 if this node is still the consumer, else 0. Also returns the milliseconds until the end of a recovery, or 0.
local node, lease, delivered, held_for, most = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
if redis.call('GET', base .. ':reader') ~= node then return {0, 0} end
allow_when_full()
redis.call('PEXPIRE', base .. ':reader', lease)
redis.call('SET', base .. ':facts:read', delivered)
redis.call('XTRIM', base .. ':facts', 'MINID', delivered)
local recovery = redis.call('PTTL', base .. ':recovering')
if recovery > 0 then return {1, recovery} end
local now = tonumber(clock())
local due = now - held_for
for _ = 1, most do
  local left, field = string.match(redis.call('LINDEX', base .. ':held:order', 0) or '', '^(%d+) (.*)$')
  if not left or (tonumber(left) > due and tonumber(left) <= now) then break end  -- after now: the server's clock was set back
  redis.call('LPOP', base .. ':held:order')
  local held = redis.call('HGET', base .. ':held', field)
  if held then
    local since, socket, received, info = string.match(held, '^(%Z*)%z(%Z*)%z(%Z*)%z(.*)$')
    if since == left then  -- another time shows that the channel or member returned and left again
      redis.call('HDEL', base .. ':held', field)
      local kind, app, channel, user = parts(field)
      hook_event(kind == 'm' and 'member-removed' or 'vacated', 's', app, channel, received, socket, user, info)
    end
  end
end
return {1, 0}

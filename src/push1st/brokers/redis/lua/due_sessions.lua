-- Makes some sessions of dead nodes absent. Returns some sessions that have ended, and some wills that are due.
--
-- KEYS[1]  base of the shard's keys
-- ARGV[1]  node
-- ARGV[2]  maximum number of sessions that one call handles; fewer if they are large
-- ARGV[3]  milliseconds after which a session is returned again, unless it is confirmed
-- ARGV[4]  1 if nodes without a lease are dead, else 0
-- ARGV[5]  milliseconds after which the will of a client of a dead node is due at the earliest
-- ARGV[6]  `bounds_of`
--
-- Returns 1 if there may be more of them, the number of absent sessions, and a list for each session: app, client id, owner,
-- generation, 1 if the session has ended, 1 if it has ended because of a bound, its will or '', the stored session and
-- its deliveries if it has ended, and the number of its messages.
if not has_lease(ARGV[1]) then return redis.error_reply('NOLEASE no lease') end
local most, now, least, bounds = tonumber(ARGV[2]), wall(), tonumber(ARGV[5]), bounds_of(ARGV[6])
local done = 0
allow_when_full()
for _, node in ipairs(ARGV[4] == '1' and redis.call('SMEMBERS', base .. ':sn') or {}) do
  if done < most and not has_lease(node) then
    local names = redis.call('SPOP', base .. ':sn:' .. node, most - done)
    for _, name in ipairs(names) do
      local app, client = string.match(name, '^([^/]*)/(.*)$')
      if redis.call('HGET', base .. ':s:' .. name, 'n') == node then leave_session(app, client, now, least, bounds) end
    end
    done = done + #names
    if redis.call('EXISTS', base .. ':sn:' .. node) == 0 then redis.call('SREM', base .. ':sn', node) end
  end
end
local found, size = {}, 0
local names = done < most and redis.call('ZRANGEBYSCORE', base .. ':sd', '-inf', now, 'LIMIT', 0, most - done) or {}
for _, name in ipairs(names) do
  local key, app, client = base .. ':s:' .. name, string.match(name, '^([^/]*)/([^%z]*)') -- without the end of `ended_name`
  local owner, generation, ends, early, messages = unpack(redis.call('HMGET', key, 'o', 'g', 'u', 'x', 'm'))
  if size > MAX_REPLY_BYTES then
    done = most
    break
  elseif owner then
    local is_over = early or tonumber(ends) <= now
    local function stored(part, is_wanted) return is_wanted and redis.call('GET', base .. part .. name) or '' end
    redis.call('ZADD', base .. ':sd', now + ARGV[3], name)
    redis.call('HSET', key, 'y', '1')
    local one = {app, client, owner, generation, is_over and 1 or 0, early and 1 or 0, stored(':sw:', true),
      stored(':ss:', is_over), stored(':sf:', is_over), messages or 0}
    for i = 7, 9 do size = size + #one[i] end
    found[#found + 1] = one
  else
    redis.call('ZREM', base .. ':sd', name)
  end
end
return {done + #names >= most and 1 or 0, redis.call('ZCARD', base .. ':sd'), found}

-- Publishes deferred leaves, the earliest leave first.
--
-- KEYS[1]  base of the shard's keys
-- ARGV[1]  maximum number of leaves that one call publishes
--
-- Returns 1 if there may be more deferred leaves, else 0.
local most = tonumber(ARGV[1])
allow_when_full()
if recovering() then return 0 end
for _ = 1, most do
  local field = redis.call('LPOP', base .. ':gone:order')
  if not field then return 0 end
  local deferred = redis.call('HGET', base .. ':gone', field)
  if deferred then
    redis.call('HDEL', base .. ':gone', field)
    local left, socket, id, received, hooked, info = string.match(deferred, '^(%Z*)%z(%Z*)%z(%Z*)%z(%Z*)%z(%Z*)%z(.*)$')
    local kind, app, channel, user = parts(field)
    if kind == 'm' then
      -- The connection that left may be on the channel again as another member, so the edge does not exclude that connection.
      publish_removed(app, channel, user, left, socket, id, received, hooked, info, '')
    elseif kind == 'c' then
      publish_vacated(app, channel, left, socket, received, hooked)
    else
      publish_offline(app, channel, socket, id, received)
    end
  end
end
return 1

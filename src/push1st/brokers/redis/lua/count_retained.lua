-- Ends some expired retained messages of all apps, and counts the others.
--
-- KEYS[1]  base of the shard's keys
--
-- Returns a flat list: app, number of retained messages, app, and so on.
allow_when_full()
local found = {}
for _, app in ipairs(redis.call('SMEMBERS', base .. ':ka')) do
  expire_retained(app)
  found[#found + 1] = app
  found[#found + 1] = redis.call('HLEN', base .. ':kh:' .. app)
end
return found

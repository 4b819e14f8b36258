-- Stores the progress of connected clients.
--
-- KEYS[1]  base of the shard's keys
-- ARGV[1]  node
-- ARGV[2…] for each client: app, client id, generation of the connection, progress, and 1 if messages of the last call of
--          `save_session.lua` may be unacknowledged, else 0
--
-- Returns the places of the clients that have a later connection, and the places of those whose connection the server does not
-- know; the first place is 0.
if not has_lease(ARGV[1]) then return redis.error_reply('NOLEASE no lease') end
local refused, unknown = {}, {}
for i = 2, #ARGV, 5 do
  local name, place = ARGV[i] .. '/' .. ARGV[i + 1], (i - 2) / 5
  local known, owner = unpack(redis.call('HMGET', base .. ':s:' .. name, 'g', 'o'))
  if known and tonumber(known) > tonumber(ARGV[i + 2]) then
    refused[#refused + 1] = place
  elseif owner and known == ARGV[i + 2] then
    redis.call('SET', base .. ':sp:' .. name, ARGV[i + 3])
    if ARGV[i + 4] == '0' then redis.call('DEL', base .. ':sf:' .. name) end
  else
    unknown[#unknown + 1] = place
  end
end
return {refused, unknown}

-- Reads the retained messages or cached events of channels. Names whose message has expired are not listed any more.
--
-- KEYS[1]  base of the shard's keys
-- ARGV[1]  app
-- ARGV[2]  maximum number of bytes; 0: the script returns only the sizes of the messages
-- ARGV[3…] channels
--
-- Returns a flat list: the message, or false without one, and the milliseconds until the message expires (-1: never), for as many
-- channels as fit, but at least one. With a maximum of 0: the size of each message, or -1 without one.
local app, left, found = ARGV[1], tonumber(ARGV[2]), {}
local only_sizes, is_first = left == 0, true
for i = 3, #ARGV do
  local key = base .. ':k:' .. app .. '/' .. ARGV[i]
  if only_sizes then
    local size = redis.call('STRLEN', key)
    found[#found + 1] = size > 0 and size or -1
  else
    local message = redis.call('GET', key)
    if message then
      left = left - #message
      if left < 0 and not is_first then break end
      is_first = false
    else
      uncount_retained(app, ARGV[i])
      redis.call('ZREM', base .. ':kc:' .. app, ARGV[i])
    end
    found[#found + 1] = message
    found[#found + 1] = message and redis.call('PTTL', key) or -1
  end
end
return found

-- Keeps the counters of channels with subscribers, although nobody publishes on these channels.
--
-- KEYS[1]  base of the shard's keys
-- ARGV[1…] for each channel: app, channel, and the milliseconds for which the channel's counter is kept at least
for i = 1, #ARGV, 3 do
  local counter = base .. ':hm:' .. ARGV[i] .. '/' .. ARGV[i + 1]
  local left = redis.call('PTTL', counter)
  if left >= 0 and left < tonumber(ARGV[i + 2]) then redis.call('PEXPIRE', counter, ARGV[i + 2]) end
end

-- Returns the ends of logs. A node without a lease gets no copies of messages any more, so the ends do not cover its messages.
--
-- KEYS[1]   base of the shard's keys
-- ARGV[1]   node
-- ARGV[2]   generation of the server's state
-- ARGV[3…]  names of logs: app, a slash, and the filter
--
-- Returns for each log its word and the offset of its last message; two empty values without the log.
if not has_lease(ARGV[1]) then return redis.error_reply('NOLEASE no lease') end
local found = {}
for i = 3, #ARGV do
  local word, last = log_of(ARGV[i], ARGV[2])
  found[#found + 1] = word or ''
  found[#found + 1] = last or ''
end
return found

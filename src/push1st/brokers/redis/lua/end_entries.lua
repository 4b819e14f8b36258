-- Removes the entries of groups whose messages are acknowledged, or stored with a session. If another node has evicted this node,
-- the entries belong to other nodes, and are not affected.
--
-- KEYS[1]   base of the shard's keys
-- ARGV[1]   node
-- ARGV[2…]  entries: APP/GROUP, a newline, and the id
allow_when_full()
for i = 2, #ARGV do remove_entry(ARGV[1], ARGV[i]) end
return 1

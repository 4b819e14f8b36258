-- Deletes the retained messages and cached events of channels.
--
-- KEYS[1]  base of the shard's keys
-- ARGV[1]  app
-- ARGV[2…] channels
local app = ARGV[1]
allow_when_full()
for i = 2, #ARGV do drop_retained(app, ARGV[i]) end
return 1

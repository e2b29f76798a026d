-- Looks what the topic's key is, and makes sure of the group where it is a
-- stream. Never creates the key: whoever publishes first decides what it is.
-- KEYS 1: stream   2: state
-- ARGV 1: group
-- Returns the key's type: none, stream, list, or another.
--
-- A lost group is made again at the floor: what lies below it was delivered
-- and acknowledged once, and must not run again.
local kind = redis.call('TYPE', KEYS[1]).ok
if kind == 'list' then
  redis.call('HSET', KEYS[2], 'kind', 'list')
elseif kind == 'stream' then
  local floor = redis.call('HGET', KEYS[2], 'floor') or '0'
  local made = redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], floor)
  if made.err and not string.find(made.err, 'BUSYGROUP', 1, true) then return made end
  redis.call('HSET', KEYS[2], 'kind', 'stream')
end
return kind

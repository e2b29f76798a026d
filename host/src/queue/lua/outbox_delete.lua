-- Deletes follow-ups that have arrived at their topics.
-- KEYS 1: outbox
-- ARGV 1: group   2..: ids
-- Returns how many were deleted. May be sent twice.
local ids = {}
for i = 2, #ARGV do ids[#ids + 1] = ARGV[i] end
redis.call('XACK', KEYS[1], ARGV[1], unpack(ids))
return redis.call('XDEL', KEYS[1], unpack(ids))

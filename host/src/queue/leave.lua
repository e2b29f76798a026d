-- Takes a worker's name off a group's list, unless something is pending under
-- it: that would be delivered and nobody's from then on. A read that reaches
-- Redis after its sender gave it up may put something there at any time.
-- KEYS 1: stream
-- ARGV 1: group   2: me
-- Returns 1 where the name is gone, else 0. May be sent twice.
if #redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2]) > 0 then return 0 end
redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
return 1

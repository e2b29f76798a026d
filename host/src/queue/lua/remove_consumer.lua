-- Removes this worker's consumer from a group, unless entries are pending for it:
-- those would be delivered and belong to no consumer. A read that reaches Redis
-- after the worker has abandoned it may add some at any time.
-- KEYS 1: stream
-- ARGV 1: group   2: our consumer
-- Returns 1 where the consumer is removed, else 0. May be sent twice.
if #redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2]) > 0 then return 0 end
redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
return 1

-- Sets or deletes a value of a plugin, and records the sizes of all its values.
-- KEYS 1: the value   2: sizes   3: expiries
-- ARGV 1: the plugin's name for it   2: `always`, `absent`, `same` or `delete`
--   3: the new value   4: its time to live in ms, or 0   5: the value that `same`
--   expects   6: the most keys   7: the most bytes, of keys and values together
-- Returns 1 where the value was set or deleted, 0 where the present value forbids
-- it; -1 or -2 where it would exceed the keys or bytes allowed, and -3 where the
-- script has to be called again, because the records of too many expired values
-- have to be deleted first.
-- Afterwards value and records agree, or nothing has changed except that records
-- of expired values are deleted.
--
-- The hash `sizes` contains the bytes of each value by its name, and under the
-- empty name, which no value has, their sum. The sorted set `expiries` contains
-- when values expire. Redis deletes an expired value by itself; its record is
-- deleted here, a few with each call, and as many as needed at a limit.
local value, sizes, expiries = KEYS[1], KEYS[2], KEYS[3]
local name, how = ARGV[1], ARGV[2]

-- One call adds at most one record, so this always catches up.
local CLEANUP = 16
local CLEANUP_MAX = 2000

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function delete_record(key)
  local bytes = redis.call('HGET', sizes, key)
  if bytes then
    redis.call('HDEL', sizes, key)
    if redis.call('HINCRBY', sizes, '', -bytes) <= 0 and redis.call('HLEN', sizes) == 1 then
      redis.call('DEL', sizes)
    end
  end
  redis.call('ZREM', expiries, key)
end

local function clean_up(count)
  -- A value still exists in the millisecond of its expiry.
  for _, key in ipairs(redis.call('ZRANGEBYSCORE', expiries, '-inf', '(' .. now, 'LIMIT', 0, count)) do
    if key ~= name then delete_record(key) end
  end
end

if how == 'delete' then
  redis.call('DEL', value)
  delete_record(name)
  clean_up(CLEANUP)
  return 1
end
if how == 'absent' and redis.call('EXISTS', value) == 1 then return 0 end
if how == 'same' and redis.call('GET', value) ~= ARGV[5] then return 0 end

local before = tonumber(redis.call('HGET', sizes, name))
local bytes = #name + #ARGV[3]

-- A value that does not become larger is allowed even if the limit was lowered.
local function excess()
  local sum = tonumber(redis.call('HGET', sizes, '') or 0)
  local keys = math.max(redis.call('HLEN', sizes) - 1, 0)
  if not before and keys + 1 > tonumber(ARGV[6]) then return -1 end
  if bytes > (before or 0) and sum - (before or 0) + bytes > tonumber(ARGV[7]) then return -2 end
end

local refusal = excess()
if refusal then
  clean_up(CLEANUP_MAX)
  refusal = excess()
  if refusal then
    local left = redis.call('ZRANGEBYSCORE', expiries, '-inf', '(' .. now, 'LIMIT', 0, 2)
    if #left > 1 or (#left == 1 and left[1] ~= name) then return -3 end
    return refusal
  end
end

-- The value is written first, because at maxmemory Redis refuses this write.
local ttl = tonumber(ARGV[4])
if ttl > 0 then
  local at = string.format('%.0f', now + ttl)
  redis.call('SET', value, ARGV[3], 'PXAT', at)
  redis.call('ZADD', expiries, at, name)
else
  redis.call('SET', value, ARGV[3])
  redis.call('ZREM', expiries, name)
end
redis.call('HSET', sizes, name, bytes)
redis.call('HINCRBY', sizes, '', bytes - (before or 0))
clean_up(CLEANUP)
return 1

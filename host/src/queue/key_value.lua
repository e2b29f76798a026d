-- Sets or deletes a value of a plugin, and keeps account of all that it has.
-- KEYS 1: the value   2: sizes   3: ends
-- ARGV 1: the plugin's name for it   2: `always`, `absent`, `same` or `delete`
--   3: the new value   4: how long it lives in ms, or 0   5: what `same` expects
--   6: most keys   7: most bytes, of keys and values together
-- Returns 1 where it was set or deleted, 0 where what stands there forbids it;
-- -1 or -2 where there would be more keys or bytes than allowed, and -3 where
-- that is not known yet: so many values have expired that a call more is needed
-- to strike them out.
-- Afterwards value and account agree, or nothing has changed but that values
-- which had expired are struck out.
--
-- The hash `sizes` holds the bytes of each value by its name, and under the
-- empty name, which no value has, their sum. The sorted set `ends` holds when
-- a value expires. Redis drops such a value by itself; it leaves the account
-- here, some with each call, and as many as needed where the room is.
local value, sizes, ends = KEYS[1], KEYS[2], KEYS[3]
local name, how = ARGV[1], ARGV[2]

-- One call may add one, so this always catches up.
local STRUCK_OUT = 16
local STRUCK_OUT_MAX = 2000

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function forget(key)
  local bytes = redis.call('HGET', sizes, key)
  if bytes then
    redis.call('HDEL', sizes, key)
    if redis.call('HINCRBY', sizes, '', -bytes) <= 0 and redis.call('HLEN', sizes) == 1 then
      redis.call('DEL', sizes)
    end
  end
  redis.call('ZREM', ends, key)
end

local function strike_out(count)
  -- The server lets a value live in the millisecond of its end.
  for _, key in ipairs(redis.call('ZRANGEBYSCORE', ends, '-inf', '(' .. now, 'LIMIT', 0, count)) do
    if key ~= name then forget(key) end
  end
end

if how == 'delete' then
  redis.call('DEL', value)
  forget(name)
  strike_out(STRUCK_OUT)
  return 1
end
if how == 'absent' and redis.call('EXISTS', value) == 1 then return 0 end
if how == 'same' and redis.call('GET', value) ~= ARGV[5] then return 0 end

local before = tonumber(redis.call('HGET', sizes, name))
local bytes = #name + #ARGV[3]

-- What makes it no larger is allowed even where less is allowed by now.
local function excess()
  local sum = tonumber(redis.call('HGET', sizes, '') or 0)
  local keys = math.max(redis.call('HLEN', sizes) - 1, 0)
  if not before and keys + 1 > tonumber(ARGV[6]) then return -1 end
  if bytes > (before or 0) and sum - (before or 0) + bytes > tonumber(ARGV[7]) then return -2 end
end

local refusal = excess()
if refusal then
  strike_out(STRUCK_OUT_MAX)
  refusal = excess()
  if refusal then
    local left = redis.call('ZRANGEBYSCORE', ends, '-inf', '(' .. now, 'LIMIT', 0, 2)
    if #left > 1 or (#left == 1 and left[1] ~= name) then return -3 end
    return refusal
  end
end

-- First, since it is what a server without memory refuses.
local ttl = tonumber(ARGV[4])
if ttl > 0 then
  local at = string.format('%.0f', now + ttl)
  redis.call('SET', value, ARGV[3], 'PXAT', at)
  redis.call('ZADD', ends, at, name)
else
  redis.call('SET', value, ARGV[3])
  redis.call('ZREM', ends, name)
end
redis.call('HSET', sizes, name, bytes)
redis.call('HINCRBY', sizes, '', bytes - (before or 0))
strike_out(STRUCK_OUT)
return 1

-- For wrk: asks for what one case asks for, and prints what it has seen as one line of JSON. Arguments behind the address: how
-- many connections there are, the kind of requests, the path before each key, then for
--   fixed  the key, and how many requests are sent at once
--   cold   how many keys there are, and the number of the first
--   mixed  how many hot keys there are, how many cold ones, and the number of the first cold one
--
-- Answers are not looked at: that would cost more than asking. drive.py counts what has reached Redis instead.
-- Keys are those of cases.py and must stay the same.

-- One of so many requests is for a cold key.
local cold_every = 10
-- How quickly hot keys become less popular: the n-th is asked for n^-skew times as often as the first.
local skew = 0.99

local function head_and_tail(path)
    local whole = wrk.format("GET", path .. "@")
    local at = whole:find("@", 1, true)
    return whole:sub(1, at - 1), whole:sub(at + 1)
end

-- Of each number of a hot key: which part of the requests is for it or one before it.
local function shares(keys)
    local result, sum = {}, 0
    for number = 1, keys do
        sum = sum + number ^ -skew
        result[number] = sum
    end
    for number = 1, keys do
        result[number] = result[number] / sum
    end
    return result
end

local function draw(of)
    local wanted, low, high = math.random(), 1, #of
    while low < high do
        local middle = math.floor((low + high) / 2)
        if of[middle] < wanted then
            low = middle + 1
        else
            high = middle
        end
    end
    return low
end

local kinds = {}

-- Without a function `request` wrk takes what `wrk.format` returns, once, and calls nothing for each request.
function kinds.fixed(path, key, times)
    local batch = wrk.format("GET", path .. key):rep(times)
    wrk.format = function() return batch end
end

function kinds.cold(path, keys, first)
    local head, tail = head_and_tail(path)
    local following = tonumber(first)
    function request()
        local number = following % keys
        following = following + 1
        return head .. "cold:" .. string.format("%d", number) .. tail
    end
end

function kinds.mixed(path, hot_keys, cold_keys, first)
    kinds.cold(path, cold_keys, first)
    local cold, of = request, shares(tonumber(hot_keys))
    local hot, count = {}, 0
    for number = 1, #of do
        hot[number] = wrk.format("GET", path .. string.format("hot:%012d", number - 1))
    end
    math.randomseed(os.time())
    function request()
        count = count + 1
        return count % cold_every == 0 and cold() or hot[draw(of)]
    end
end

-- There is one, with one state for its requests; `done` has another.
local thread

function setup(of)
    thread = of
end

function init(arguments)
    connections = tonumber(arguments[1])
    kinds[arguments[2]](unpack(arguments, 3))
end

-- How long answers took: ascending microseconds, how often each was seen, and how often all were. wrk has put in answers to what it
-- did not send while it waited: one less than each by `interval`, one less by twice that, and so on. With requests in batches
-- they are nonsense, and more than its own percentiles can bear. What is longest has nothing put in, so they can be taken out
-- again from there.
local function times_seen(latency, interval)
    local times, counts, seen = {}, {}, 0
    for place = 1, #latency do
        times[place], counts[place] = latency(place)
    end
    local place_of = {}
    for place, time in ipairs(times) do
        place_of[time] = place
    end
    for place = #times, 1, -1 do
        local count = counts[place]
        seen = seen + count
        for less = times[place] - interval, interval + 1, -interval do
            if count > 0 and place_of[less] then
                counts[place_of[less]] = counts[place_of[less]] - count
            end
        end
    end
    return times, counts, seen
end

function done(summary, latency)
    local interval = math.floor(summary.duration / math.max(1, math.floor(summary.requests / thread:get("connections"))))
    local times, counts, seen = times_seen(latency, interval)
    local place, sum = 0, 0
    local function percentile(share)
        while sum < share * seen do
            place = place + 1
            sum = sum + counts[place]
        end
        return times[place] / 1e6
    end
    local errors = summary.errors
    print(string.format('RESULT {"requests":%d,"seconds":%.6f,"timed":%d,"socket_errors":%d,"bad_statuses":%d,' ..
        '"p50":%.6f,"p99":%.6f,"p999":%.6f}', summary.requests, summary.duration / 1e6, seen,
        errors.connect + errors.read + errors.write + errors.timeout, errors.status,
        percentile(0.5), percentile(0.99), percentile(0.999)))
end

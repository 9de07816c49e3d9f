plugins {
    alias(libs.plugins.kotlin.jvm)
    alias(libs.plugins.kotlin.serialization)
}

kotlin {
    jvmToolchain(17)
    compilerOptions.allWarningsAsErrors = true
}

dependencies {
    api(project(":core"))
    compileOnly(libs.onnxruntime.jvm) // an app brings onnxruntime-android, whose classes are the same
    testImplementation(libs.onnxruntime.jvm)
    testImplementation(libs.kotlin.test.junit)
    testImplementation(libs.junit)
}

tasks.test {
    environment("ORT_DISABLE_TELEMETRY", "1")
    systemProperty("conformance", rootDir.resolve("../conformance").path)
    systemProperty("bundle", providers.gradleProperty("bundle").getOrElse("mobileclip_nano-fp32"))
}
